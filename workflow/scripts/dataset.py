"""The images of a network's configuration."""

from pathlib import Path

from scap.data.datasets import Dataset, load_dataset


def open_dataset(path: str, architecture: dict) -> Dataset:
    """The data set with the network's holdout and limit on training images."""
    return load_dataset(Path(path), architecture["holdout"], architecture.get("train_images"))
