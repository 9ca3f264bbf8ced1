"""Augmentation: every batch is made of the given images, moved, mirrored or cut as announced."""

import numpy
import pytest
import torch

from scap.data.datasets import Images
from scap.errors import ScapError
from scap.training.augmentation import alternating_flips, augmented_batches, check_sizes, cut_out, pad, resize
from scap.training.settings import TrainingSettings

MEAN, STD = torch.zeros(2), torch.full((2,), 1 / 255)  # normalised values are then those of the bytes


@pytest.fixture
def data():
    images = torch.randint(1, 256, (20, 2, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(images, torch.arange(20))


def one_epoch(data, batch_size=5, *, seed=0, epoch=0, **changes):
    torch.manual_seed(seed)
    settings = TrainingSettings(epochs=9, batch_size=batch_size, learning_rate=1, **changes)
    batches = augmented_batches(data, MEAN, STD, settings, seed=5, epoch=epoch)
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


def test_reflected_padding_is_that_of_numpy(data):
    values = data.images.numpy()
    for width in (1, 2, 4):
        expected = numpy.pad(values, ((0, 0), (0, 0), (width, width), (width, width)), mode="reflect")
        assert torch.equal(pad(data.images, width, "reflected"), torch.from_numpy(expected))


def test_reflected_crops_hold_no_black(data):
    assert not one_epoch(data, crop=2)[0].flatten(1).all(1).all()
    assert one_epoch(data, crop=2, padding="reflected")[0].all()


def test_alternating_flips_show_both_sides_of_every_image_in_two_epochs(data):
    mirrored = [[], []]
    for epoch in (0, 1):
        images, labels, _ = one_epoch(data, seed=epoch, epoch=epoch, flip=True, alternating_flip=True)
        same = (images == data.images[labels]).flatten(1).all(1)
        assert (same ^ (images == data.images[labels].flip(3)).flatten(1).all(1)).all()
        mirrored[epoch] = [not side for _, side in sorted(zip(labels.tolist(), same.tolist(), strict=True))]
    assert [not side for side in mirrored[0]] == mirrored[1]
    assert 0 < sum(mirrored[0]) < 20


def test_alternating_flips_depend_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = alternating_flips(1000, 3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, alternating_flips(1000, 3, 4))
    assert torch.equal(first, alternating_flips(1000, 3, 6))
    assert torch.equal(first, ~alternating_flips(1000, 3, 5))
    assert 400 < (first != alternating_flips(1000, 4, 4)).sum() < 600


def test_flips_that_alternate_leave_the_order_and_the_crops_alone(data):
    by_chance, labels, _ = one_epoch(data, flip=True, crop=1)
    alternating, again, _ = one_epoch(data, flip=True, crop=1, alternating_flip=True)
    assert torch.equal(labels, again)
    assert not torch.equal(by_chance, alternating)


def test_small_images_are_those_of_the_first_epochs():
    images = torch.randint(256, (4, 2, 8, 8), dtype=torch.uint8)
    sides = []
    for epoch in range(4):
        settings = TrainingSettings(epochs=9, batch_size=4, learning_rate=1, small_images=(4, 6, 8))
        ((inputs, _),) = augmented_batches(Images(images, torch.arange(4)), MEAN, STD, settings, epoch=epoch)
        sides.append(tuple(inputs.shape))
    assert sides == [(4, 2, side, side) for side in (4, 6, 8, 8)]


def test_a_smaller_image_keeps_its_brightness_and_what_is_smooth_in_it():
    slope = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    small = resize(slope, 16)
    pairs = slope.unflatten(3, (16, 2)).mean(4)[:, :, ::2]
    assert torch.allclose(small[..., 1:-1], pairs[..., 1:-1], atol=1e-5)
    assert float(small.mean()) == pytest.approx(0.5, abs=1e-4)
    assert resize(slope, 32) is slope
    assert resize(slope, None) is slope


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("changes", [{}, {"cutout": 2}, {"small_images": (4,)}])
def test_batches_come_in_the_order_in_memory_that_was_asked_for(data, memory_format, changes):
    settings = TrainingSettings(epochs=1, batch_size=5, learning_rate=1, **changes)
    for inputs, _ in augmented_batches(data, MEAN, STD, settings, memory_format=memory_format):
        assert inputs.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 5}, "crop: 5 pixels leave nothing of images of 5; give less"),
        ({"cutout": 6}, "cutout: 6 pixels leave nothing of images of 5; give less"),
        ({"small_images": [4, 6]}, "small_images: 6 pixels are more than the images have, 5; give at most that"),
    ],
)
def test_sizes_that_do_not_fit_the_images_are_refused(data, changes, message):
    settings = TrainingSettings(epochs=9, batch_size=5, learning_rate=1, **changes)
    with pytest.raises(ScapError, match=f"^{message}$"):
        check_sizes(data, settings)


def test_sizes_that_just_fit_are_taken(data):
    check_sizes(data, TrainingSettings(epochs=2, batch_size=5, learning_rate=1, crop=4, cutout=4, small_images=(1, 5)))
    assert one_epoch(data, crop=4, padding="reflected")[0].all()
