"""Random crops, mirroring and cutout of whole batches, on whatever device holds the images."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from scap.data.datasets import Images, normalise
from scap.data.folder import FolderImages


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """`images` (B, C, H, W) with a square of zeros around each of the `centres` (B, 2), cut at the border.

    `side` in pixels; zero is the mean of normalised images (DeVries and Taylor 2017).
    """
    starts = centres - side // 2
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    in_rows = (rows >= starts[:, :1]) & (rows < starts[:, :1] + side)
    in_columns = (columns >= starts[:, 1:]) & (columns < starts[:, 1:] + side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def augmented_batches(
    data: Images, mean: Tensor, std: Tensor, batch_size: int, *, flip: bool, crop: int, cutout: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: normalised float32 batches (B, C, H, W), labels (B,), on the data's device.

    Each image is shifted by up to `crop` pixels (black outside), mirrored with probability 1/2 if `flip`, and
    loses a square of `cutout` pixels; all drawn from the global CPU random state. An incomplete last batch is
    left out, since its statistics would disturb the batch normalisation.
    """
    (height, width), device = data.images.shape[-2:], data.images.device
    padded = functional.pad(data.images, (crop, crop, crop, crop))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every crop, as a view: (N, C, dy, dx, H, W)
    order = torch.randperm(len(data)).to(device)
    offsets = torch.randint(2 * crop + 1, (len(data), 2)).to(device)
    mirrored = (torch.rand(len(data)) < 0.5 * flip).to(device)
    centres = torch.stack([torch.randint(size, (len(data),)) for size in (height, width)], 1).to(device)
    for start in range(0, max(1, len(data) - batch_size + 1), batch_size):
        chosen = order[start : start + batch_size]
        batch = windows[chosen, :, offsets[chosen, 0], offsets[chosen, 1]]
        batch = torch.where(mirrored[chosen, None, None, None], batch.flip(3), batch)
        inputs = normalise(batch, mean, std, device).contiguous(memory_format=torch.channels_last)
        yield cut_out(inputs, centres[chosen], cutout) if cutout else inputs, data.labels[chosen]


def decoded_batches(
    data: FolderImages,
    mean: Tensor,
    std: Tensor,
    batch_size: int,
    device: torch.device,
    *,
    flip: bool,
    cutout: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As augmented_batches for images in a folder: random crops of random size rather than shifts, on `device`."""
    for batch, labels in data.random_batches(batch_size, flip=flip):
        inputs = normalise(batch, mean, std, device).contiguous(memory_format=torch.channels_last)
        centres = torch.randint(data.settings.size, (len(labels), 2)).to(device)
        yield cut_out(inputs, centres, cutout) if cutout else inputs, labels.to(device)
