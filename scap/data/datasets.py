"""Image data sets: raw files checked by MD5, read once into one safetensors file, loaded as tensors; or lists of a folder."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scap.checks import check_number
from scap.data.folder import FolderImages, open_folder, read_folder
from scap.data.settings import IMAGENET, FolderSettings
from scap.data.sources import FOLDER, check_raw_files, missing_files, raw_files
from scap.data.torchvision_cure import import_torchvision
from scap.errors import DamagedFile, ScapError
from scap.reading import StoredTensors, open_tensors

DIGITS_TEST_IMAGES = 360
SPLIT_SEED = 0  # of the test images of digits and of the holdout, which must not change with a run's seed
TORCHVISION_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True)
class Images:
    """`images` uint8 (N, C, H, W), 0..255, and `labels` int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def subset(self, chosen: Tensor) -> "Images":
        """Those at the indices `chosen`."""
        return Images(self.images[chosen], self.labels[chosen])

    def take(self, chosen: Tensor) -> Tensor:
        """The images at the indices `chosen`, uint8 (n, C, H, W)."""
        return self.images[chosen]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All in order: images (B, C, H, W) and labels (B,)."""
        return zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)

    def to(self, device: torch.device | str) -> "Images":
        """These images on `device`."""
        return Images(self.images.to(device), self.labels.to(device))

    def identity(self) -> dict[str, Tensor]:
        """Tensors that tell these images from others."""
        return {"images": self.images, "labels": self.labels}


@dataclass(frozen=True)
class Dataset:
    """Disjoint image sets; `mean` and `std` (C,) that images are normalised by, with intensities in 0..1."""

    train: Images | FolderImages
    holdout: Images | FolderImages
    test: Images | FolderImages
    mean: Tensor
    std: Tensor
    classes: int


def download(source: str, root: Path) -> None:
    """Fetch the raw files of `source` into `root` through torchvision, unless all are there.

    Raises ScapError naming the files to put there by hand if the download fails.
    """
    if missing_files(source, root):
        try:
            getattr(import_torchvision().datasets, TORCHVISION_CLASSES[source])(root, download=True)
        except (OSError, RuntimeError) as error:
            files = ", ".join(str(path) for path in missing_files(source, root))
            message = f"{source}: download failed ({error}); put these files there by hand: {files}"
            raise ScapError(message) from error
    check_raw_files(source, root)


def _read_digits() -> dict[str, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    images = functional.interpolate(images, size=(32, 32), mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=DIGITS_TEST_IMAGES, stratify=digits.target, random_state=SPLIT_SEED
    )
    return _tensors(Images(images[train], labels[train]), Images(images[test], labels[test]))


def _read_cifar(source: str, root: Path) -> dict[str, Tensor]:
    dataset_class = getattr(import_torchvision().datasets, TORCHVISION_CLASSES[source])
    parts = [dataset_class(root, train=train) for train in (True, False)]
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    labels = [torch.tensor(part.targets) for part in parts]
    return _tensors(Images(images[0], labels[0]), Images(images[1], labels[1]))


def _read_fashion_mnist(root: Path) -> dict[str, Tensor]:
    dataset_class = import_torchvision().datasets.FashionMNIST
    # torchvision unpacks beside the archives and never checks what lies there already: unpack elsewhere.
    with tempfile.TemporaryDirectory() as folder:
        for name in raw_files("fashion-mnist"):
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(root, name).resolve())
        parts = [dataset_class(folder, train=train, download=True) for train in (True, False)]
    images = [functional.pad(part.data[:, None], (2, 2, 2, 2)) for part in parts]
    return _tensors(Images(images[0], parts[0].targets), Images(images[1], parts[1].targets))


def _tensors(train: Images, test: Images) -> dict[str, Tensor]:
    return {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }


def read_source(source: str, root: Path, **folder: Any) -> dict[str, Tensor]:
    """The checked raw files under `root` as tensors that save_tensors writes and load_dataset loads.

    train_images, test_images: uint8 (N, C, 32, 32); train_labels, test_labels: int64 (N,). digits is enlarged
    bilinearly from 8x8 and split by class, always alike; fashion-mnist is padded with zeros from 28x28. Of the source
    "folder", whose FolderSettings are given by `folder`, the images are listed only (read_folder).
    """
    if source == FOLDER:
        return read_folder(root, FolderSettings(**folder))
    if folder:
        raise ScapError(f"dataset: {min(folder)} is for `source: folder`; {source} has images of one size")
    check_raw_files(source, root)
    if source == "digits":
        return _read_digits()
    return _read_fashion_mnist(root) if source == "fashion-mnist" else _read_cifar(source, root)


def _mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) in 0..1 of uint8 images, exactly, from their histograms."""
    histograms = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    share = torch.stack(histograms).double() / images[:, 0].numel()
    intensity = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ intensity
    std = ((intensity - mean[:, None]).square() * share).sum(1).sqrt()
    return mean.float(), std.float()


def _open_images(path: Path) -> tuple[Images, Images] | tuple[FolderImages, FolderImages]:
    """The training and the test images of a file, copied into memory or listed; DamagedFile where they are none."""
    with open_tensors(path, digest=True) as file:
        train, test = open_folder(file) if "folder" in file.names else (_copied(file, "train"), _copied(file, "test"))
    classes = int(train.labels.max()) + 1
    for part in (train, test):
        if part.labels.min() < 0 or part.labels.max() >= classes:
            raise DamagedFile(path, f"has labels outside of 0..{classes - 1}, the classes of the training images")
    return train, test  # type: ignore[return-value]  # both are of one kind


def _copied(file: StoredTensors, part: str) -> Images:
    images = file.take(f"{part}_images", (part, "channels", "height", "width"), ("U8",)).clone()
    return Images(images, file.take(f"{part}_labels", (part,), ("I64",)).clone())


def load_dataset(
    path: Path,
    holdout: int,
    train_images: int | None = None,
    normalisation: Mapping[str, Sequence[float]] | None = None,
) -> Dataset:
    """Data set from the file `path` that read_source's tensors were saved to.

    A fixed permutation splits `holdout` images off the training set; `train_images` limits what is left.
    `normalisation` has the `mean` and the `std` of each channel that a network was trained with, for intensities in 0..1;
    by default they are those of the whole training set, and ImageNet's for a folder. Raises ScapError for a missing or
    damaged file, for a holdout that leaves nothing to train on and for a normalisation that does not fit.
    """
    train, test = _open_images(path)
    labels = train.labels
    check_number(holdout, "holdout", whole=True)
    if not 0 <= holdout < len(labels):
        raise ScapError(f"holdout: {holdout} of {len(labels)} training images; leave some to train on")
    if train_images is not None:
        check_number(train_images, "train_images", whole=True)
    if train_images is not None and train_images < 1:
        raise ScapError(f"train_images: {train_images}; give at least 1, or leave it out to use all")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, used = order[:holdout], order[holdout:][:train_images]
    mean, std = _statistics(train, normalisation)
    return Dataset(
        train=train.subset(used),
        holdout=train.subset(held),
        test=test,
        mean=mean,
        std=std,
        classes=int(labels.max()) + 1,
    )


def _statistics(train: Images | FolderImages, given: Mapping[str, Sequence[float]] | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) that images are normalised by, in 0..1."""
    if given is None and isinstance(train, Images):
        return _mean_and_std(train.images)
    given = IMAGENET if given is None else given
    if not isinstance(given, Mapping) or set(given) != {"mean", "std"}:
        raise ScapError(f"normalisation: {given!r} is none; give `mean` and `std`, a number for each channel")
    channels = train.shape[0]
    for key, values in given.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != channels:
            raise ScapError(f"normalisation: {key} is {values!r}; give {channels} numbers, one for each channel of the images")
        for value in values:
            check_number(value, f"normalisation: {key}", 0, 1)
            if key == "std" and not value:
                raise ScapError("normalisation: std is 0; give a number above 0, for intensities in 0..1")
    mean, std = (torch.tensor(given[key], dtype=torch.float32) for key in ("mean", "std"))
    return mean, std


def normalise(images: Tensor, mean: Tensor, std: Tensor, device: torch.device | str) -> Tensor:
    """uint8 (N, C, H, W) -> float32 on `device`, (x / 255 - mean) / std in each channel."""
    mean, std = (statistic.to(device)[:, None, None] for statistic in (mean, std))
    return (images.to(device).float() / 255 - mean) / std
