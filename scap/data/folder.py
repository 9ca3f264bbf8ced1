"""Images in folders, a folder a class, of any size and number: decoded when they are used, never all in memory.

Decoding and transforms are torchvision's (its presets for classification), in worker processes of PyTorch's DataLoader.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from scap.data.settings import FolderSettings
from scap.data.sources import PARTS, class_folders
from scap.data.torchvision_cure import import_torchvision
from scap.errors import DamagedFile, ScapError
from scap.reading import StoredTensors

CPU = torch.device("cpu")
FEW = 64  # images that are decoded sooner than a worker process starts


def read_folder(root: Path, settings: FolderSettings) -> dict[str, Tensor]:
    """The list of the images below `root`, as tensors for save_tensors; no image is opened.

    train_files, test_files: uint8 (N, L), paths below train and val; train_sizes, test_sizes: int64 (N,), their bytes;
    train_labels, test_labels: int64 (N,); folder: uint8, the root and the settings as JSON. Raises ScapError for folders
    or classes that are missing or empty.
    """
    classes = class_folders(root)
    about = json.dumps({"root": str(root), "settings": asdict(settings)}, sort_keys=True)
    tensors = {"folder": torch.frombuffer(bytearray(about, "utf-8"), dtype=torch.uint8)}
    for part, name in PARTS.items():
        files, labels = _list(Path(root, name), classes)
        if part == "train" and (empty := sorted(set(range(len(classes))) - set(labels))):
            raise ScapError(f"{Path(root, name, classes[empty[0]])}: holds no images; add some, or delete the folder")
        if not files:
            raise ScapError(f"{Path(root, name)}: its folders hold no images")
        tensors |= {
            f"{part}_files": _as_bytes([os.fsencode(file) for file in files]),
            f"{part}_sizes": torch.tensor([Path(root, name, file).stat().st_size for file in files]),
            f"{part}_labels": torch.tensor(labels),
        }
    return tensors


def _list(folder: Path, classes: list[str]) -> tuple[list[str], list[int]]:
    """Paths of the images below a folder, relative to it, in alphabetical order by class, and their labels."""
    module = import_torchvision().datasets.folder
    labels = {name: label for label, name in enumerate(classes)}
    found = module.make_dataset(str(folder), labels, module.IMG_EXTENSIONS, allow_empty=True)
    return [os.path.relpath(path, folder) for path, _ in found], [label for _, label in found]


def _as_bytes(names: list[bytes]) -> Tensor:
    """Names as rows of bytes (N, L), filled with zeros."""
    array = np.array(names, dtype=np.bytes_)
    return torch.from_numpy(array.view(np.uint8).reshape(len(names), -1))


@dataclass(frozen=True)
class FolderImages:
    """Images below `root` and `labels` int64 (N,); `files` uint8 (N, L) are paths, `sizes` (N,) the bytes of the files.

    What it gives is as that of scap.data.datasets.Images: uint8 (B, 3, size, size), 0..255, on `device`.
    """

    root: Path
    files: Tensor
    sizes: Tensor
    labels: Tensor
    settings: FolderSettings
    workers: int | None = None  # processes that decode; None: as many as threads
    device: torch.device = CPU  # where labels are, and where batches go

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return 3, self.settings.size, self.settings.size

    def subset(self, chosen: Tensor) -> "FolderImages":
        """Those at the indices `chosen`."""
        return replace(self, files=self.files[chosen], sizes=self.sizes[chosen], labels=self.labels[chosen])

    def to(self, device: torch.device | str) -> "FolderImages":
        """The same images, whose batches go to `device` when they are decoded."""
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def identity(self) -> dict[str, Tensor]:
        """Tensors that tell these images from others, as far as can be told without opening them."""
        settings = torch.frombuffer(bytearray(json.dumps(asdict(self.settings)), "utf-8"), dtype=torch.uint8)
        return {"files": self.files, "sizes": self.sizes, "labels": self.labels, "settings": settings}

    def take(self, chosen: Tensor) -> Tensor:
        """The images at the indices `chosen`, resized and cropped as for testing, uint8 (n, 3, size, size)."""
        batches = [images for images, _ in self.subset(chosen.cpu()).batches(FEW)]
        return torch.cat(batches) if batches else torch.zeros(0, *self.shape, dtype=torch.uint8, device=self.device)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All in order, resized and cropped in the centre: images (B, 3, size, size) and labels (B,)."""
        jobs: list[Job] = [(index, None) for index in range(len(self))]
        return ((images, self.labels[indices]) for images, indices in self._decode(jobs, batch_size))

    def random_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order: random crops of random size (B, 3, size, size), and their indices (B,).

        All is drawn from the global CPU random state before the first batch, whatever the number of workers. An incomplete
        last batch is left out.
        """
        order = torch.randperm(len(self)).tolist()
        seeds = torch.randint(2**62, (len(self),)).tolist()
        whole = max(len(self) // batch_size * batch_size, min(batch_size, len(self)))
        jobs: list[Job] = list(zip(order, seeds, strict=True))
        return self._decode(jobs[:whole], batch_size)

    def _decode(self, jobs: list["Job"], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        threads = torch.get_num_threads()
        workers = (threads if threads > 1 else 0) if self.workers is None else self.workers
        _transform(self.settings, training=False)  # imports torchvision here, once, rather than in every worker
        loader = DataLoader(
            _Decoder(self.root, self.files, self.settings),
            batch_sampler=[jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)],
            num_workers=workers if len(jobs) > FEW else 0,
            collate_fn=_collate,
            generator=torch.Generator(),  # of its own: the global random state is the training's
        )
        for images, indices in _explained(loader):
            yield images.to(self.device), torch.tensor(indices, device=self.device)


Job = tuple[int, int | None]  # index of an image, and the seed of its random crop; None: as for testing


class _Decoder(TorchDataset):
    """What a worker needs. An image that cannot be decoded gives a message: exceptions would lose their one line on the way."""

    def __init__(self, root: Path, files: Tensor, settings: FolderSettings) -> None:
        self.root, self.files, self.settings = root, files, settings

    def __getitem__(self, job: Job) -> tuple[int, Tensor | str]:
        index, seed = job
        path = self.root / os.fsdecode(self.files[index].numpy().tobytes().rstrip(b"\0"))
        try:
            image = import_torchvision().datasets.folder.pil_loader(str(path))
            with torch.random.fork_rng(devices=[]):
                if seed is not None:
                    torch.default_generator.manual_seed(seed)
                return index, _transform(self.settings, training=seed is not None)(image)
        except FileNotFoundError:
            return index, f"{path}: is missing; the folder has changed since its images were listed: list them again"
        except Exception as error:  # a damaged file can raise anything
            return index, f"{path}: cannot be decoded ({str(error) or type(error).__name__}); replace or delete it"


@cache
def _transform(settings: FolderSettings, *, training: bool) -> Any:
    """torchvision's transform of a PIL image to uint8 (3, size, size)."""
    import_torchvision()
    from torchvision.transforms import v2

    how: dict[str, Any] = {"interpolation": v2.InterpolationMode(settings.interpolation), "antialias": True}
    if training:
        crop = v2.RandomResizedCrop(settings.size, scale=(settings.smallest_crop, 1.0), **how)
        return v2.Compose([crop, v2.PILToTensor()])  # batches are mirrored, if at all, in scap.training.augmentation
    return v2.Compose([v2.Resize(settings.resize, **how), v2.CenterCrop(settings.size), v2.PILToTensor()])


def _collate(decoded: list[tuple[int, Tensor | str]]) -> tuple[Tensor, list[int]] | str:
    if problems := [image for _, image in decoded if isinstance(image, str)]:
        return problems[0]
    return torch.stack([image for _, image in decoded if isinstance(image, Tensor)]), [index for index, _ in decoded]


def _explained(loader: DataLoader) -> Iterator[tuple[Tensor, list[int]]]:
    """The loader's batches; ScapError for an image that cannot be decoded and for workers that were killed."""
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise ScapError(batch)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ScapError(
            "dataset: a process that decodes images was killed, for want of memory perhaps; use fewer threads"
        ) from error


def open_folder(file: StoredTensors) -> tuple[FolderImages, FolderImages]:
    """Training and test images of a list that save_tensors(read_folder(...)) wrote; DamagedFile where it is none."""
    about = bytes(file.take("folder", ("folder",), ("U8",)).numpy())
    try:
        facts = json.loads(about)
        root, settings = Path(facts["root"]), FolderSettings(**facts["settings"])
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedFile(file.path, f"is no list of images ({error!r})") from error
    parts = {}
    for part, name in PARTS.items():
        files = file.take(f"{part}_files", (part, f"{part} paths"), ("U8",)).clone()
        sizes, labels = (file.take(f"{part}_{what}", (part,), ("I64",)).clone() for what in ("sizes", "labels"))
        parts[part] = FolderImages(root / name, files, sizes, labels, settings)
    return parts["train"], parts["test"]
