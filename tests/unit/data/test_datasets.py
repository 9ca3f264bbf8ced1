"""Data sets: raw files checked, tensors as promised, splits disjoint and fixed."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch

from scap.data import datasets as data
from scap.data.datasets import download, load_dataset, normalise, read_source
from scap.data.sources import RAW_FILES, check_raw_files, missing_files
from scap.data.torchvision_cure import import_torchvision
from scap.errors import ScapError
from scap.tensors import save_tensors


def fake_bytes(source, name, generator):
    """The content of one raw file of a tiny `source`, in the format of the real one."""
    if name.endswith("meta"):
        return pickle.dumps({"label_names": ["a"] * 10, "fine_label_names": ["a"] * 100})
    if source == "fashion-mnist":
        images = generator.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, 6, dtype=np.uint8)
        if "images" in name:
            return gzip.compress(struct.pack(">4i", 2051, 6, 28, 28) + images.tobytes())
        return gzip.compress(struct.pack(">2i", 2049, 6) + labels.tobytes())
    images = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
    return pickle.dumps({"data": images, "labels" if source == "cifar10" else "fine_labels": list(range(6))})


@pytest.fixture
def fake_source(tmp_path, monkeypatch):
    """Write a tiny `source` under a folder, and let its MD5s count as the right ones."""

    def write(source):
        generator, expected = np.random.default_rng(0), {}
        for name in RAW_FILES[source]:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fake_bytes(source, name, generator))
            expected[name] = hashlib.md5(path.read_bytes()).hexdigest()
        dataset_class = getattr(import_torchvision().datasets, data.TORCHVISION_CLASSES[source])
        by_name = {name.split("/")[-1]: md5 for name, md5 in expected.items()}
        for attribute in ("train_list", "test_list", "resources"):
            if hasattr(dataset_class, attribute):
                files = [[name, by_name[name]] for name, _ in getattr(dataset_class, attribute)]
                monkeypatch.setattr(dataset_class, attribute, files)
        if hasattr(dataset_class, "meta"):
            meta = dataset_class.meta
            monkeypatch.setattr(dataset_class, "meta", meta | {"md5": by_name[meta["filename"]]})
        monkeypatch.setitem(RAW_FILES, source, expected)
        return tmp_path

    return write


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    save_tensors(path, read_source("digits", path.parent))
    return path


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_the_md5s_of_cifar_are_those_of_torchvision(source):
    dataset_class = getattr(import_torchvision().datasets, data.TORCHVISION_CLASSES[source])
    files = [*dataset_class.train_list, *dataset_class.test_list]
    files.append((dataset_class.meta["filename"], dataset_class.meta["md5"]))
    assert RAW_FILES[source] == {f"{dataset_class.base_folder}/{name}": md5 for name, md5 in files}


def test_the_md5s_of_fashion_mnist_are_those_of_torchvision():
    resources = import_torchvision().datasets.FashionMNIST.resources
    assert RAW_FILES["fashion-mnist"] == {f"FashionMNIST/raw/{name}": md5 for name, md5 in resources}


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_is_read_as_channels_first_tensors(source, fake_source):
    root = fake_source(source)
    tensors = read_source(source, root)
    batches, expected = [n for n in RAW_FILES[source] if not n.endswith("meta")], {}
    for split, names in (("train", batches[:-1]), ("test", batches[-1:])):
        raw = [pickle.loads((root / name).read_bytes())["data"] for name in names]
        expected[split] = torch.from_numpy(np.concatenate(raw)).reshape(-1, 3, 32, 32)
    assert torch.equal(tensors["train_images"], expected["train"])
    assert torch.equal(tensors["test_images"], expected["test"])
    assert tensors["test_labels"].tolist() == list(range(6))
    assert tensors["train_labels"].dtype == torch.int64


def test_fashion_mnist_is_padded_and_its_folder_left_as_it_was(fake_source):
    root = fake_source("fashion-mnist")
    before = sorted(root.rglob("*"))
    tensors = read_source("fashion-mnist", root)
    name = "FashionMNIST/raw/train-images-idx3-ubyte.gz"
    raw = np.frombuffer(gzip.decompress((root / name).read_bytes())[16:], np.uint8).reshape(6, 28, 28)
    expected = torch.from_numpy(np.pad(raw, ((0, 0), (2, 2), (2, 2))))[:, None]
    assert torch.equal(tensors["train_images"], expected)
    assert tensors["test_labels"].dtype == torch.int64
    assert sorted(root.rglob("*")) == before


def test_digits_are_enlarged_and_split_by_class():
    tensors = read_source("digits", "unused")
    labels = [tensors[f"{part}_labels"] for part in ("train", "test")]
    shares = [torch.bincount(part) / len(part) for part in labels]
    assert tensors["train_images"].shape == (1437, 1, 32, 32)
    assert tensors["test_images"].shape == (360, 1, 32, 32)
    assert tensors["train_images"].dtype == torch.uint8
    assert int(tensors["train_images"].max()) == 255
    assert torch.allclose(*shares, atol=0.003)


def test_digits_are_the_same_in_every_call():
    first, second = (read_source("digits", "unused") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_missing_raw_file_is_named(fake_source):
    root = fake_source("cifar10")
    path = root / "cifar-10-batches-py/data_batch_3"
    path.unlink()
    assert missing_files("cifar10", root) == [path]
    with pytest.raises(ScapError, match=r"data_batch_3: missing; download cifar10"):
        read_source("cifar10", root)


def test_a_damaged_raw_file_is_named(fake_source):
    root = fake_source("cifar10")
    path = root / "cifar-10-batches-py/test_batch"
    path.write_bytes(path.read_bytes()[:-1])
    assert missing_files("cifar10", root) == []
    with pytest.raises(ScapError, match=r"test_batch: damaged .* delete it"):
        check_raw_files("cifar10", root)


def test_an_unknown_source_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ScapError, match=r"'imagenet' is unknown.*digits, cifar10"):
        missing_files("imagenet", tmp_path)


def test_a_failed_download_says_which_files_to_put_where(tmp_path, monkeypatch):
    def offline(*arguments, **keywords):
        raise OSError("no route to host")

    monkeypatch.setattr(import_torchvision().datasets.CIFAR100, "download", offline)
    with pytest.raises(ScapError, match=r"no route to host.*by hand: .*cifar-100-python/train") as failure:
        download("cifar100", tmp_path)
    assert str(tmp_path) in str(failure.value)


def test_nothing_is_fetched_where_all_files_are_there(fake_source, monkeypatch):
    root = fake_source("cifar100")
    monkeypatch.setattr(import_torchvision().datasets.CIFAR100, "download", lambda *a: pytest.fail("fetched"))
    download("cifar100", root)


def test_digits_need_no_download(tmp_path):
    download("digits", tmp_path)
    assert missing_files("digits", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_train_and_holdout_partition_the_training_set(digits):
    dataset = load_dataset(digits, holdout=100)
    whole = load_dataset(digits, holdout=0)
    parts = torch.cat([dataset.train.images, dataset.holdout.images]).flatten(1)
    assert (len(dataset.train), len(dataset.holdout), len(dataset.test)) == (1337, 100, 360)
    assert dataset.classes == 10
    everything = whole.train.images.flatten(1)
    assert sorted(map(bytes, parts.numpy())) == sorted(map(bytes, everything.numpy()))


def test_the_holdout_is_the_same_in_every_call_and_mixed_over_classes(digits):
    first, second = (load_dataset(digits, holdout=200) for _ in range(2))
    assert torch.equal(first.holdout.images, second.holdout.images)
    assert len(first.holdout.labels.unique()) == 10


def test_a_limit_of_training_images_keeps_the_other_sets_and_the_statistics(digits):
    full, small = load_dataset(digits, holdout=50), load_dataset(digits, holdout=50, train_images=64)
    assert torch.equal(small.train.images, full.train.images[:64])
    assert torch.equal(small.holdout.images, full.holdout.images)
    assert torch.equal(small.mean, full.mean)


def save_images(path, images, labels):
    """A data set whose training and test images are the same."""
    parts = {f"{part}_images": images.clone() for part in ("train", "test")}
    save_tensors(path, parts | {f"{part}_labels": labels.clone() for part in ("train", "test")})


def test_images_keep_their_labels(tmp_path):
    labels = torch.arange(40)
    images = labels.to(torch.uint8)[:, None, None, None].expand(40, 1, 4, 4)
    save_images(tmp_path / "x.safetensors", images, labels)
    dataset = load_dataset(tmp_path / "x.safetensors", holdout=10)
    for part in (dataset.train, dataset.holdout, dataset.test):
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)


def test_mean_and_std_are_those_of_all_training_images(tmp_path):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator)
    save_images(tmp_path / "x.safetensors", images, torch.arange(30) % 3)
    dataset = load_dataset(tmp_path / "x.safetensors", holdout=10, train_images=5)
    normal = normalise(images, dataset.mean, dataset.std, "cpu")
    assert torch.allclose(dataset.mean, (images / 255).mean((0, 2, 3)))
    assert torch.allclose(dataset.std, (images / 255).std((0, 2, 3), correction=0))
    assert normal.dtype == torch.float32
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.square().mean((0, 2, 3)), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("arguments", [{"holdout": 1437}, {"holdout": -1}, {"holdout": 0, "train_images": 0}])
def test_a_split_that_leaves_nothing_is_refused(digits, arguments):
    with pytest.raises(ScapError, match=f"^{list(arguments)[-1]}: "):
        load_dataset(digits, **arguments)


def test_a_missing_or_damaged_data_set_is_named(tmp_path, digits):
    path = tmp_path / "cut.safetensors"
    with pytest.raises(ScapError, match=r"cut\.safetensors: there is no such file; make it again"):
        load_dataset(path, holdout=0)
    path.write_bytes(digits.read_bytes()[:-10])
    with pytest.raises(ScapError, match=r"cut\.safetensors: the file is damaged: its content does not fit the checksum"):
        load_dataset(path, holdout=0)


def test_a_file_without_the_data_sets_tensors_is_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"train_images": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)})
    with pytest.raises(ScapError, match="holds no 'train_labels'"):
        load_dataset(tmp_path / "x.safetensors", holdout=0)


IMAGES, LABELS = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4)
WRONG = {
    "labels that are missing": ({"train_labels": LABELS[:3]}, r"'train_labels' has shape \(3,\), not \(4\)"),
    "labels below 0": ({"train_labels": LABELS - 1}, r"labels outside of 0\.\.2"),
    "test images of more classes": ({"test_labels": LABELS + 1}, r"labels outside of 0\.\.3"),
    "test images of another size": (
        {"test_images": IMAGES[..., :1]},
        r"'test_images' has shape \(4, 3, 2, 1\), not \(test, 3, 2, 2\)",
    ),
    "floats": ({"train_images": IMAGES.float()}, "'train_images' is of type F32, not U8"),
    "no images": ({"train_images": IMAGES[:0]}, "'train_images' has shape"),
    "labels one-hot": ({"test_labels": torch.eye(4).long()}, "'test_labels' has shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_are_no_data_set_are_refused(tmp_path, name):
    changed, message = WRONG[name]
    parts = {f"{part}_{kind}": value for part in ("train", "test") for kind, value in (("images", IMAGES), ("labels", LABELS))}
    save_tensors(tmp_path / "x.safetensors", parts | changed)
    with pytest.raises(ScapError, match=rf"x\.safetensors: .*{message}.*; make it again"):
        load_dataset(tmp_path / "x.safetensors", holdout=0)


def test_images_in_memory_are_split_and_taken_as_those_of_a_folder(digits):
    images = load_dataset(digits, holdout=0).train
    batches = list(images.batches(100))
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(images.take(torch.tensor([5, 2])), images.images[[5, 2]])
    assert images.shape == (1, 32, 32)


def test_a_given_normalisation_replaces_that_of_the_images(digits):
    dataset = load_dataset(digits, holdout=0, normalisation={"mean": [0.25], "std": [1]})
    assert (dataset.mean.tolist(), dataset.std.tolist()) == ([0.25], [1.0])
    expected = dataset.train.images[:3].float() / 255 - 0.25
    assert torch.equal(normalise(dataset.train.images[:3], dataset.mean, dataset.std, "cpu"), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5]}, "give `mean` and `std`"),
        ({"mean": [0.5], "std": [0.5], "size": 3}, "give `mean` and `std`"),
        ("imagenet", "give `mean` and `std`"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5]}, r"mean is \[0.5, 0.5, 0.5\]; give 1 numbers, one for each channel"),
        ({"mean": 0.5, "std": [0.5]}, "mean is 0.5; give 1 numbers"),
        ({"mean": "5", "std": [0.5]}, "mean is '5'; give 1 numbers"),
        ({"mean": [0.5], "std": [0]}, "std is 0; give a number above 0"),
        ({"mean": [0.5], "std": [-0.5]}, "std is -0.5; it must lie in"),
        ({"mean": [124.0], "std": [0.5]}, "mean is 124.0; it must lie in"),
        ({"mean": [float("nan")], "std": [0.5]}, "mean is nan; it must lie in"),
        ({"mean": [True], "std": [0.5]}, "give a number"),
        ({"mean": ["a"], "std": [0.5]}, "give a number"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(digits, given, message):
    with pytest.raises(ScapError, match=f"normalisation: .*{message}"):
        load_dataset(digits, holdout=0, normalisation=given)
