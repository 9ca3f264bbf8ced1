"""Images in folders: listed once, decoded when they are used, the same whatever the number of workers."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scap.data.datasets import load_dataset, read_source
from scap.data.folder import FolderImages, _Decoder
from scap.data.settings import IMAGENET, FolderSettings
from scap.data.sources import ENDINGS, check_raw_files, class_folders, missing_files, survey_folder
from scap.data.torchvision_cure import import_torchvision
from scap.errors import DamagedFile, ScapError
from scap.tensors import save_tensors
from scap.training.augmentation import augmented_batches
from scap.training.loop import evaluate, train
from scap.training.settings import TrainingSettings

COLOURS = {"blue": 2, "green": 1, "red": 0}
ZERO, ONE = torch.zeros(3), torch.ones(3)
PRESET = {"size": 8, "resize": 10, "smallest_crop": 0.5}


def write_image(path, channel, seed, size=(14, 11)):
    """A noisy image (width, height) in which one colour is strong."""
    pixels = np.random.default_rng(seed).integers(0, 120, (*size[::-1], 3), dtype=np.uint8)
    pixels[..., channel] += 130
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(root, train=30, val=10):
    """So many images a class, some in a folder below."""
    for name, channel in COLOURS.items():
        for part, count in (("train", train), ("val", val)):
            for i in range(count):
                below = "more/" if i % 5 == 4 else ""
                write_image(root / part / name / f"{below}{i:03}.png", channel, 100 * channel + i, (14 + i % 3, 11))
    return root


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"))


def listed(root, path, holdout=0, **options):
    """The data set of a folder, through its list in the file `path`."""
    save_tensors(path, read_source("folder", root, **PRESET))
    return load_dataset(path, holdout, **options)


@pytest.fixture
def dataset(root, tmp_path):
    return listed(root, tmp_path / "list.safetensors", holdout=6)


def decoded(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_classes_and_images_are_found_in_order(root, dataset):
    assert class_folders(root) == ["blue", "green", "red"]
    assert (len(dataset.train), len(dataset.holdout), len(dataset.test), dataset.classes) == (84, 6, 30, 3)
    assert dataset.test.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    images, labels = decoded(dataset.test.batches(7))
    assert images.dtype == torch.uint8
    assert images.shape == (30, 3, 8, 8)
    strongest = images.float().mean((2, 3)).argmax(1)
    assert [list(COLOURS.values())[label] for label in labels] == strongest.tolist()


def test_the_holdout_is_disjoint_and_always_the_same(root, dataset, tmp_path):
    again = listed(root, tmp_path / "again.safetensors", holdout=6)
    held, used = ({bytes(name) for name in part.files.numpy()} for part in (dataset.holdout, dataset.train))
    assert not held & used
    assert len(held | used) == 90
    assert torch.equal(again.holdout.files, dataset.holdout.files)
    assert len(listed(root, tmp_path / "few.safetensors", train_images=20).train) == 20


def test_test_images_are_resized_and_cropped_in_the_centre(tmp_path):
    picture = torch.arange(20 * 40).reshape(20, 40) % 256
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(picture.byte().numpy()).save(tmp_path / part / "a" / "x.png")
    save_tensors(tmp_path / "list", read_source("folder", tmp_path, size=10, resize=20))
    (image,) = load_dataset(tmp_path / "list", 0).test.take(torch.tensor([0]))
    assert torch.equal(image[0], picture[5:15, 15:25].byte())
    assert torch.equal(image[0], image[2])  # grey images become three equal channels


def test_the_same_whatever_the_number_of_workers(dataset):
    results = []
    for workers in (0, 1, 2):
        torch.manual_seed(5)
        data = FolderImages(**{**vars(dataset.train), "workers": workers})
        results.append((*decoded(data.random_batches(16)), torch.rand(3)))
        assert torch.equal(decoded(data.batches(16))[0], decoded(dataset.train.batches(50))[0])
    for images, indices, after in results[1:]:
        assert torch.equal(images, results[0][0])
        assert torch.equal(indices, results[0][1])
        assert torch.equal(after, results[0][2])  # the caller's stream went on alike


def test_random_batches_are_another_order_and_crop_each_time(dataset):
    torch.manual_seed(0)
    first, second = (decoded(dataset.train.random_batches(16)) for _ in range(2))
    assert len(first[1]) == 80  # 84 images: the incomplete batch is left out
    assert not torch.equal(first[1], second[1])
    assert len(decoded(dataset.train.random_batches(100))[1]) == 84  # fewer than a batch: all
    strongest = first[0].float().mean((2, 3)).argmax(1)
    assert [list(COLOURS.values())[label] for label in dataset.train.labels[first[1]]] == strongest.tolist()


def test_images_are_mirrored_half_of_the_time_where_flips_are_on(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(64):
            Image.fromarray(np.repeat([[0, 250]], 2, 0).astype(np.uint8)).save(tmp_path / part / "a" / f"{i}.png")
    save_tensors(tmp_path / "list", read_source("folder", tmp_path, size=2, resize=2, smallest_crop=1.0))
    train = load_dataset(tmp_path / "list", 0).train
    torch.manual_seed(0)
    mirrored = {}
    for how in ({}, {"flip": True}, {"flip": True, "alternating_flip": True}):
        settings = TrainingSettings(epochs=2, batch_size=64, learning_rate=1, **how)
        epochs = [next(augmented_batches(train, ZERO, ONE, settings, epoch=epoch))[0][:, 0, 0, 0] > 0.5 for epoch in (0, 1)]
        mirrored[len(how)] = [int(epoch.sum()) for epoch in epochs]
    assert mirrored[0] == [0, 0]
    assert all(16 < count < 48 for count in mirrored[1] + mirrored[2])
    assert sum(mirrored[2]) == 64


def test_batches_are_normalised_blanked_and_made_smaller(dataset):
    settings = TrainingSettings(epochs=2, batch_size=16, learning_rate=1, cutout=4, small_images=(6,))
    for epoch, side in ((0, 6), (1, 8)):
        inputs, labels = next(augmented_batches(dataset.train, dataset.mean, dataset.std, settings, epoch=epoch))
        assert inputs.shape == (16, 3, side, side)
        assert inputs.dtype == torch.float32
        assert labels.shape == (16,)
    blank = (inputs == 0).all(1).sum((1, 2))
    assert blank.min() >= 4  # at the border it is cut: 2 x 2 pixels at least
    assert blank.max() == 16


def test_chosen_images_are_taken_in_the_order_asked_for(dataset):
    everything = decoded(dataset.train.batches(50))[0]
    chosen = torch.tensor([70, 3, 3, 12])
    assert torch.equal(dataset.train.take(chosen), everything[chosen])
    assert dataset.train.take(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)


def test_folders_are_normalised_as_torchvisions_presets(root, dataset, tmp_path):
    assert torch.equal(dataset.mean, torch.tensor(IMAGENET["mean"]))
    own = listed(root, tmp_path / "own", normalisation={"mean": [0.5] * 3, "std": [0.25] * 3})
    assert own.std.tolist() == [0.25] * 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def test_a_network_learns_from_a_folder_and_a_killed_run_goes_on_bit_by_bit(dataset, tmp_path):
    settings = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.2, flip=True, cutout=2)
    whole, killed = network(), network()
    history = train(whole, dataset, settings, seed=0)
    assert evaluate(whole, dataset.test, dataset.mean, dataset.std) > 90
    assert history[-1]["holdout_top1"] > 60

    def kill(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, dataset, settings, seed=0, resume=tmp_path / "resume", report=kill)
    resumed = network()
    train(resumed, dataset, settings, seed=0, resume=tmp_path / "resume")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_shifts_are_not_for_folders(dataset):
    with pytest.raises(ScapError, match="crop: 2 is for data sets in memory"):
        train(network(), dataset, TrainingSettings(epochs=1, batch_size=16, learning_rate=0.1, crop=2), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, workers, content):
    root = write_folder(tmp_path / "images", train=40, val=1)
    dataset = listed(root, tmp_path / "list")
    victim = root / "train" / "green" / "007.png"
    victim.write_bytes(victim.read_bytes()[:-60] if content is None else content)
    data = FolderImages(**{**vars(dataset.train), "workers": workers})
    with pytest.raises(ScapError, match=r"green/007\.png: cannot be decoded") as failure:
        list(data.batches(16))
    assert "\n" not in str(failure.value)
    victim.unlink()
    with pytest.raises(ScapError, match=r"green/007\.png: is missing; the folder has changed"):
        list(data.batches(16))


def test_a_killed_worker_is_one_line(dataset, monkeypatch):
    monkeypatch.setattr(_Decoder, "__getitem__", lambda self, job: os.kill(os.getpid(), signal.SIGKILL))
    data = FolderImages(**{**vars(dataset.train), "workers": 1})
    with pytest.raises(ScapError, match="a process that decodes images was killed"):
        list(data.batches(16))


def test_folders_that_are_not_as_they_should_be_are_named(tmp_path):
    with pytest.raises(ScapError, match=r"train: there is no such folder; images lie in train/CLASS"):
        check_raw_files("folder", tmp_path)
    root = write_folder(tmp_path / "images", train=2, val=1)
    (root / "val" / "purple").mkdir()
    with pytest.raises(ScapError, match="purple: this class has no folder in train"):
        check_raw_files("folder", root)
    (root / "val" / "purple").rename(root / "train" / "purple")
    with pytest.raises(ScapError, match="train/purple: holds no images"):
        read_source("folder", root)
    (root / "train" / "purple").rmdir()
    (root / "train" / ".ipynb_checkpoints").mkdir()
    check_raw_files("folder", root)
    assert missing_files("folder", root) == []
    for name in COLOURS:
        shutil.rmtree(root / "val" / name)
    with pytest.raises(ScapError, match="val: holds no folders"):
        read_source("folder", root)
    (root / "val" / "red").mkdir()
    (root / "val" / "red" / "notes.txt").write_text("no image")
    with pytest.raises(ScapError, match="val: its folders hold no images"):
        read_source("folder", root)


def add(root):
    write_image(root / "val" / "red" / "new.png", 0, 1)


def remove(root):
    (root / "train" / "red" / "more" / "004.png").unlink()


def resize(root):
    """In place: the folder's own date stays."""
    image = root / "train" / "red" / "000.png"
    image.write_bytes(image.read_bytes() + b"more")


def rename(root):
    (root / "train" / "red" / "000.png").rename(root / "train" / "red" / "x.png")


@pytest.mark.parametrize("change", [add, remove, resize, rename])
def test_a_survey_tells_when_images_have_changed(change, tmp_path):
    root = write_folder(tmp_path, train=6, val=1)
    before = survey_folder(root)
    (root / "train" / "red" / "notes.txt").write_text("no image")
    os.utime(root / "train" / "red" / "000.png")
    assert survey_folder(root) == before
    change(root)
    assert survey_folder(root).digest != before.digest


def test_a_survey_counts_what_a_list_holds(tmp_path):
    root = write_folder(tmp_path / "images", train=6, val=1)
    (root / "train" / "red" / "linked").symlink_to(root / "train" / "blue")
    (root / "val" / "green").rename(tmp_path / "elsewhere")
    (root / "val" / "red" / "LARGE.JPEG").write_bytes(b"1")
    tensors, found = read_source("folder", root), survey_folder(root)
    assert (found.train, found.test) == (24, 3) == (len(tensors["train_labels"]), len(tensors["test_labels"]))
    assert set(ENDINGS) == set(import_torchvision().datasets.folder.IMG_EXTENSIONS)


def test_a_survey_says_what_a_list_says(tmp_path):
    """And what cannot be read at all, before any job."""
    root = write_folder(tmp_path, train=2, val=1)
    (root / "train" / "red" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ScapError, match=r"red/gone\.png: cannot be read \(No such file or directory\); mend or delete it"):
        survey_folder(root)
    for images, folder in (("train/red", "train/red"), ("val", "val")):
        for path in (root / images).rglob("*.png"):
            path.unlink()
        messages = []
        for reads in (survey_folder, lambda root: read_source("folder", root)):
            with pytest.raises(ScapError, match=f"{folder}: .*hold") as error:
                reads(root)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        write_folder(root, train=2, val=1)
    shutil.rmtree(root / "val")
    with pytest.raises(ScapError, match="val: there is no such folder"):
        survey_folder(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "dataset: size is 0; it must be at least 1"),
        ({"size": 32, "resize": 20}, "resize is 20, less than size, 32"),
        ({"smallest_crop": 0.0}, "smallest_crop is 0.0; it must be above 0"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; did you mean 'bicubic'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ScapError, match=message):
        FolderSettings(**options)


def test_settings_of_folders_are_for_folders(tmp_path):
    with pytest.raises(ScapError, match="size is for `source: folder`; digits has images of one size"):
        read_source("digits", tmp_path, size=32)


def test_a_list_that_is_none_is_named(root, tmp_path):
    tensors = read_source("folder", root, **PRESET)
    for name, value, message in (
        ("folder", torch.tensor(list(b"{}"), dtype=torch.uint8), "is no list of images"),
        ("train_labels", tensors["train_labels"][1:], "has shape"),
        ("test_labels", tensors["test_labels"] + 1, "has labels outside of 0..2"),
    ):
        save_tensors(tmp_path / "list", tensors | {name: value})
        with pytest.raises(DamagedFile, match=message):
            load_dataset(tmp_path / "list", 0)
