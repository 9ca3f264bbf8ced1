"""Random crops, mirroring, cutout and smaller sizes of whole batches, on whatever device holds the images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scap.data.datasets import Images, normalise
from scap.data.folder import FolderImages
from scap.errors import ScapError
from scap.training.settings import TrainingSettings


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """`images` (B, C, H, W) with a square of zeros around each of the `centres` (B, 2), cut at the border.

    `side` in pixels; zero is the mean of normalised images (DeVries and Taylor 2017).
    """
    starts = centres - side // 2
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    in_rows = (rows >= starts[:, :1]) & (rows < starts[:, :1] + side)
    in_columns = (columns >= starts[:, 1:]) & (columns < starts[:, 1:] + side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def pad(images: Tensor, width: int, padding: str) -> Tensor:
    """`images` (N, C, H, W) with `width` more pixels on each side: black, or reflected at the outermost pixels."""
    if padding == "black" or not width:
        return functional.pad(images, (width, width, width, width))
    rows, columns = (_reflected(size, width).to(images.device) for size in images.shape[-2:])
    return images[:, :, rows][:, :, :, columns]  # by hand, as PyTorch reflects no bytes


def _reflected(size: int, width: int) -> Tensor:
    """Which of `size` pixels stands at -width ... size - 1 + width, the outermost not repeated."""
    places = torch.arange(-width, size + width).abs()
    return torch.minimum(places, 2 * (size - 1) - places)


def alternating_flips(count: int, seed: int, epoch: int) -> Tensor:
    """Which of `count` images are mirrored in `epoch` (0, 1, ...): (count,) bool; the others are in the next one.

    So that two epochs show both sides of every image (Jordan 2024, arXiv:2404.00498, section 3.6).
    """
    entropy = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    first = torch.rand(count, generator=torch.Generator().manual_seed(int(entropy[0]))) < 0.5
    return first ^ bool(epoch % 2)


def resize(images: Tensor, side: int | None) -> Tensor:
    """Float `images` (B, C, H, W) at `side` x `side` pixels, bilinear with antialiasing; unchanged for None."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def check_sizes(data: Images | FolderImages, settings: TrainingSettings) -> None:
    """Raise ScapError for a setting that does not fit the images: it names the key, its value and theirs."""
    least = min(data.shape[1:])
    if settings.crop and isinstance(data, FolderImages):
        raise ScapError(f"crop: {settings.crop} is for data sets in memory; images of a folder are always cropped at random")
    for key, value in (("crop", settings.crop), ("cutout", settings.cutout)):
        if value >= least:
            raise ScapError(f"{key}: {value} pixels leave nothing of images of {least}; give less")
    if max(settings.small_images, default=0) > least:
        wanted = max(settings.small_images)
        raise ScapError(f"small_images: {wanted} pixels are more than the images have, {least}; give at most that")


def augmented_batches(
    data: Images | FolderImages,
    mean: Tensor,
    std: Tensor,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    epoch: int = 0,
    memory_format: torch.memory_format = torch.channels_last,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch number `epoch` (from 0) in random order: normalised float32 (B, C, H, W), labels (B,), on the data's device.

    As `settings` say, each image is shifted by up to `crop` pixels (of a folder: a random part of it becomes the image),
    mirrored, loses a square of `cutout` pixels and is made smaller. The global CPU random state decides, but for
    alternating flips, which `seed` and `epoch` do. An incomplete last batch is left out, since its statistics would
    disturb the batch normalisation.
    """
    device = data.device
    crops = data.random_batches(settings.batch_size) if isinstance(data, FolderImages) else _shifted(data, settings)
    mirrored = torch.rand(len(data)) < 0.5 * settings.flip
    if settings.alternating_flip:
        mirrored = alternating_flips(len(data), seed, epoch)
    mirrored = mirrored.to(device)
    centres = torch.stack([torch.randint(size, (len(data),)) for size in data.shape[1:]], 1).to(device)
    for batch, chosen in crops:
        batch = torch.where(mirrored[chosen, None, None, None], batch.flip(3), batch)
        inputs = normalise(batch, mean, std, device)
        inputs = cut_out(inputs, centres[chosen], settings.cutout) if settings.cutout else inputs
        yield resize(inputs, settings.side_in(epoch)).contiguous(memory_format=memory_format), data.labels[chosen]


def _shifted(data: Images, settings: TrainingSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in random order, shifted by up to `crop` pixels, and their indices. All is drawn at once, before the first."""
    height, width = data.shape[1:]
    padded = pad(data.images, settings.crop, settings.padding)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every crop, as a view: (N, C, dy, dx, H, W)
    order = torch.randperm(len(data)).to(data.device)
    offsets = torch.randint(2 * settings.crop + 1, (len(data), 2)).to(data.device)
    starts = range(0, max(1, len(data) - settings.batch_size + 1), settings.batch_size)
    indices = (order[start : start + settings.batch_size] for start in starts)
    return ((windows[chosen, :, offsets[chosen, 0], offsets[chosen, 1]], chosen) for chosen in indices)
