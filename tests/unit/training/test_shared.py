"""A training that two processes share is that of one, up to rounding: images, augmentation, teacher, what is measured."""

from functools import partial

import pytest
import torch
from torch import nn
from two import in_two

from scap.data.datasets import Dataset, Images
from scap.errors import ScapError
from scap.training import finetuning, loop, shared
from scap.training.loop import train
from scap.training.settings import TrainingSettings
from scap.training.shared import train_shared


def images(count, seed):
    """Horizontal (class 0) and vertical (class 1) stripes in noise."""
    labels = torch.arange(count) % 2
    wave = (torch.arange(8) % 2 * 120).expand(8, 8)
    noise = torch.randint(0, 120, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return Images((torch.stack([wave.T, wave])[labels][:, None] + noise).to(torch.uint8), labels)


def dataset():
    return Dataset(*map(images, (24, 8, 8), range(3)), mean=torch.tensor([0.5]), std=torch.tensor([0.25]), classes=2)


def made(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 2)),
    )


PLAIN = TrainingSettings(epochs=2, batch_size=8, learning_rate=0.05, momentum=0.5, flip=True, crop=1, cutout=2)
FULL = TrainingSettings(
    **vars(PLAIN) | {"ema": 0.5, "distillation": 0.3, "label_smoothing": 0.1, "small_images": [6], "alternating_flip": True}
)


def trained(function, settings, **options):
    network = made()
    history = function(network, dataset(), settings, seed=3, device="cpu", teacher=made(1), **options)
    weights = {name: value.tolist() for name, value in network.state_dict().items()}
    return weights, [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same(found, expected):
    for name, values in expected[0].items():
        torch.testing.assert_close(torch.tensor(found[0][name]), torch.tensor(values), rtol=1e-4, atol=1e-5)
    assert [list(row) for row in found[1]] == [list(row) for row in expected[1]]
    for row, wanted in zip(found[1], expected[1], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
def test_two_processes_train_as_one(tmp_path, settings):
    first, second = in_two(partial(trained, train_shared, settings), tmp_path)
    assert first == second
    same(first, trained(train, settings))


def test_bfloat16_reaches_every_process_that_has_it(tmp_path, monkeypatch):
    for module in (loop, shared):
        monkeypatch.setattr(module, "computes_in_bfloat16", lambda device: True)
    settings = TrainingSettings(**vars(PLAIN) | {"precision": "bfloat16", "distillation": 0.3})
    first, second = in_two(partial(trained, train_shared, settings), tmp_path)
    assert first == second
    assert first[1][-1]["loss"] == pytest.approx(trained(train, settings)[1][-1]["loss"], rel=0.02)
    assert first[0] != trained(train_shared, PLAIN)[0]


def stopped_after_an_epoch(path, **options):
    """Both processes end; the first one has saved."""

    def stop(row):
        raise KeyError("killed")

    with pytest.raises(KeyError):
        trained(train_shared, FULL, resume=path, report=stop, **options)


def killed_and_resumed(path):
    epochs = []
    stopped_after_an_epoch(path)
    torch.distributed.barrier()
    found = trained(train_shared, FULL, resume=path, report=lambda row: epochs.append(row["epoch"]))
    return found, epochs


def test_killed_processes_resume_to_the_same_weights(tmp_path):
    (first, epochs), _ = in_two(partial(killed_and_resumed, tmp_path / "resume"), tmp_path)
    assert epochs == [2]
    (tmp_path / "again").mkdir()
    assert first == in_two(partial(trained, train_shared, FULL), tmp_path / "again")[0]


def test_other_settings_of_the_augmentation_do_not_resume(tmp_path, caplog):
    stopped_after_an_epoch(tmp_path / "resume")
    epochs = []
    settings = TrainingSettings(**vars(FULL) | {"crop": 2})
    trained(train_shared, settings, resume=tmp_path / "resume", report=lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2]
    assert "training from scratch" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "batch_size: 7 does not divide by 2 processes; give a multiple"),
        ({"crop": 8}, "crop: 8 pixels leave nothing of images of 8; give less"),
    ],
)
def test_what_cannot_be_shared_is_told_by_both(tmp_path, changes, message):
    settings = TrainingSettings(**vars(PLAIN) | changes)
    assert in_two(partial(trained, train_shared, settings), tmp_path) == [message, message]


def test_a_distillation_wants_a_teacher():
    with pytest.raises(ScapError, match=r"distillation: 0\.3 needs a teacher"):
        train_shared(made(), dataset(), FULL, seed=0, device="cpu")


def test_what_is_done_here_is_not_done_twice():
    """Every setting that finetune refuses, with its default."""
    assert shared.DONE.keys() == {*finetuning.OF_IMAGES, "label_smoothing"}
    assert TrainingSettings(1, 1, 1.0, **shared.DONE) == TrainingSettings(1, 1, 1.0)
