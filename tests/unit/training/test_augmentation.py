"""Augmentation: every batch is made of the given images, moved, mirrored or cut as announced."""

import pytest
import torch

from scap.data.datasets import Images
from scap.training.augmentation import augmented_batches, cut_out

MEAN, STD = torch.zeros(2), torch.full((2,), 1 / 255)  # normalised values are then those of the bytes


@pytest.fixture
def data():
    images = torch.randint(1, 256, (20, 2, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(images, torch.arange(20))


def one_epoch(data, batch_size=5, *, flip=False, crop=0, cutout=0, seed=0):
    torch.manual_seed(seed)
    batches = augmented_batches(data, MEAN, STD, batch_size, flip=flip, crop=crop, cutout=cutout)
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs).round().to(torch.uint8), torch.cat(labels), [len(part) for part in labels]


def test_without_augmentation_an_epoch_is_a_permutation(data):
    images, labels, _ = one_epoch(data)
    assert torch.equal(images, data.images[labels])
    assert sorted(labels.tolist()) == list(range(20))
    assert labels.tolist() != list(range(20))


def test_flip_mirrors_some_images_and_leaves_the_others(data):
    images, labels, _ = one_epoch(data, flip=True)
    originals = data.images[labels]
    same = (images == originals).flatten(1).all(1)
    mirrored = (images == originals.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_crop_shifts_images_by_whole_pixels_with_black_outside(data):
    images, labels, _ = one_epoch(data, crop=2)
    padded = torch.nn.functional.pad(data.images, (2, 2, 2, 2))
    shifts = set()
    for image, label in zip(images, labels, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image, padded[label, :, row : row + 6, column : column + 5])
        ]
        assert len(found) == 1
        shifts |= set(found)
    assert len(shifts) > 8
    assert {0, 4} <= {row for row, _ in shifts}


def test_cutout_blackens_one_square_of_an_image(data):
    images, labels, _ = one_epoch(data, cutout=2)
    changed = images != data.images[labels]
    assert not images[changed].any()
    assert set(changed.sum((1, 2, 3)).tolist()) <= {2 * area for area in (1, 2, 4)}
    assert changed.flatten(1).any(1).all()


def test_a_square_is_centred_and_clipped_at_the_border():
    holes = cut_out(torch.ones(2, 1, 6, 6), torch.tensor([[3, 3], [0, 5]]), 4) == 0
    assert holes[0, 0].nonzero().tolist() == [[row, column] for row in range(1, 5) for column in range(1, 5)]
    assert holes[1, 0].nonzero().tolist() == [[row, column] for row in range(2) for column in range(3, 6)]


def test_an_incomplete_last_batch_is_left_out_unless_it_is_the_only_one(data):
    assert one_epoch(data, batch_size=8)[2] == [8, 8]
    assert one_epoch(data, batch_size=50)[2] == [20]


def test_the_random_state_alone_decides(data):
    arguments = {"flip": True, "crop": 2, "cutout": 2}
    first, again, other = (one_epoch(data, seed=seed, **arguments)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
