"""Image data sets: raw files checked by MD5, read once into one safetensors file, loaded as tensors."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from scap.checks import check_number
from scap.data.sources import check_raw_files, missing_files, raw_files
from scap.data.torchvision_cure import import_torchvision
from scap.errors import DamagedFile, ScapError
from scap.reading import open_tensors

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


@dataclass(frozen=True)
class Dataset:
    """Disjoint image sets; `mean` and `std` (C,) of the whole training set, with intensities in 0..1."""

    train: Images
    holdout: Images
    test: Images
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


def read_source(source: str, root: Path) -> dict[str, Tensor]:
    """The checked raw files under `root` as tensors that save_tensors writes and load_dataset loads.

    train_images, test_images: uint8 (N, C, 32, 32); train_labels, test_labels: int64 (N,). digits is enlarged
    bilinearly from 8x8 and split by class, always alike; fashion-mnist is padded with zeros from 28x28.
    """
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


def _open_images(path: Path) -> tuple[Images, Images]:
    """The training and the test images of a file, copied into memory; DamagedFile where they are none."""
    with open_tensors(path, digest=True) as file:
        parts = [
            Images(
                file.take(f"{part}_images", (part, "channels", "height", "width"), ("U8",)).clone(),
                file.take(f"{part}_labels", (part,), ("I64",)).clone(),
            )
            for part in ("train", "test")
        ]
    classes = int(parts[0].labels.max()) + 1
    for part in parts:
        if part.labels.min() < 0 or part.labels.max() >= classes:
            raise DamagedFile(path, f"has labels outside of 0..{classes - 1}, the classes of the training images")
    return parts[0], parts[1]


def load_dataset(path: Path, holdout: int, train_images: int | None = None) -> Dataset:
    """Data set from the file `path` that read_source's tensors were saved to.

    A fixed permutation splits `holdout` images off the training set; `train_images` limits what is left.
    Raises ScapError for a missing or damaged file and for a holdout that leaves nothing to train on.
    """
    train, test = _open_images(path)
    images, labels = train.images, train.labels
    check_number(holdout, "holdout", whole=True)
    if not 0 <= holdout < len(labels):
        raise ScapError(f"holdout: {holdout} of {len(labels)} training images; leave some to train on")
    if train_images is not None:
        check_number(train_images, "train_images", whole=True)
    if train_images is not None and train_images < 1:
        raise ScapError(f"train_images: {train_images}; give at least 1, or leave it out to use all")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, used = order[:holdout], order[holdout:][:train_images]
    mean, std = _mean_and_std(images)
    return Dataset(
        train=Images(images[used], labels[used]),
        holdout=Images(images[held], labels[held]),
        test=test,
        mean=mean,
        std=std,
        classes=int(labels.max()) + 1,
    )


def normalise(images: Tensor, mean: Tensor, std: Tensor, device: torch.device | str) -> Tensor:
    """uint8 (N, C, H, W) -> float32 on `device`, (x / 255 - mean) / std in each channel."""
    mean, std = (statistic.to(device)[:, None, None] for statistic in (mean, std))
    return (images.to(device).float() / 255 - mean) / std
