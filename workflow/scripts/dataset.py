"""The images of a network's configuration."""

from pathlib import Path

import torch
from torch import Tensor

from scap.data.datasets import Dataset, load_dataset, normalise
from scap.errors import ScapError


def open_dataset(path: str, architecture: dict) -> Dataset:
    """The data set with the network's holdout, limit on training images and normalisation."""
    limit, normalisation = architecture.get("train_images"), architecture.get("normalisation")
    return load_dataset(Path(path), architecture["holdout"], limit, normalisation)


def calibration_images(dataset: Dataset, count: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """`count` training images drawn by the seed, normalised, not augmented, (N, C, H, W), and their labels (N,)."""
    available = len(dataset.train)
    if count > available:
        raise ScapError(f"calibration: {count} images are wanted, but there are {available} training images; lower `images`")
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count]
    images = normalise(dataset.train.take(chosen), dataset.mean, dataset.std, device)
    return images, dataset.train.labels[chosen].to(device)
