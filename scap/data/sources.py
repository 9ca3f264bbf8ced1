"""Where images come from: official files and their MD5 sums, or a folder of one's own.

Imports no torch: the workflow checks them before any job.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scap.errors import ScapError

RAW_FILES: dict[str, dict[str, str]] = {
    "digits": {},
    "cifar10": {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    },
    "fashion-mnist": {
        "FashionMNIST/raw/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}


FOLDER = "folder"  # the source of images that lie in folders train and val, with a folder a class
PARTS = {"train": "train", "test": "val"}  # part of a data set -> its folder below the root
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # of images, as torchvision has them

# Training images, and the side of an image in pixels, of each source.
SIZES = {"digits": (1437, 32), "cifar10": (50000, 32), "cifar100": (50000, 32), "fashion-mnist": (60000, 32)}


def raw_files(source: str) -> dict[str, str]:
    """Path below the root -> MD5 of the files of a source; none for digits, which scikit-learn brings, and for a folder."""
    if source == FOLDER:
        return {}
    if source not in RAW_FILES:
        raise ScapError(f"source: {source!r} is unknown; choose one of {', '.join(RAW_FILES)}, {FOLDER}")
    return RAW_FILES[source]


def missing_files(source: str, root: str | Path) -> list[Path]:
    """The raw files of `source` that `root` lacks; none for digits, which scikit-learn brings."""
    return [Path(root, name) for name in raw_files(source) if not Path(root, name).is_file()]


def md5(path: Path) -> str:
    """MD5 of a file's content, in hexadecimal; DVC names contents by it too."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_raw_files(source: str, root: str | Path) -> None:
    """Compare the raw files of `source` with their MD5; ScapError names the first missing or damaged one.

    Of a folder the classes are compared (class_folders).
    """
    if source == FOLDER:
        class_folders(root)
    for name, expected in raw_files(source).items():
        path = Path(root, name)
        if not path.is_file():
            raise ScapError(f"{path}: missing; download {source} again, or copy the file there")
        if (found := md5(path)) != expected:
            raise ScapError(f"{path}: damaged (MD5 {found}, not {expected}); delete it and download again")


def class_folders(root: str | Path) -> list[str]:
    """Names of the classes of a folder of images, in alphabetical order: its label is a class's place in it.

    ScapError where `root` lacks train or val, has no class, or val has a class that train has not.
    """
    found = {}
    for name in PARTS.values():
        folder = Path(root, name)
        if not folder.is_dir():
            raise ScapError(f"{folder}: there is no such folder; images lie in train/CLASS and val/CLASS below the root")
        found[name] = _names(folder, os.DirEntry.is_dir)
        if not found[name]:
            raise ScapError(f"{folder}: holds no folders; images lie in train/CLASS and val/CLASS below the root")
    if unknown := sorted(set(found["val"]) - set(found["train"])):
        raise ScapError(f"{Path(root, 'val', unknown[0])}: this class has no folder in train; add it, or take it out of val")
    return found["train"]


@dataclass(frozen=True)
class Survey:
    """A folder of images as far as names and sizes tell: numbers of images of each part, and a digest of all that."""

    train: int
    test: int
    digest: str


def survey_folder(root: str | Path) -> Survey:
    """Count the images that a list of the folder would hold; no image is opened, and torch is not imported.

    An image added, removed, renamed or of another number of bytes alters the digest. ScapError for folders or classes that
    are missing or empty, as when the images are listed, and for what cannot be read.
    """
    try:
        return _survey(root, class_folders(root))
    except OSError as error:
        raise ScapError(f"{error.filename}: cannot be read ({error.strerror}); mend or delete it") from error


def _survey(root: str | Path, classes: list[str]) -> Survey:
    digest, counts = hashlib.sha256(), dict.fromkeys(PARTS, 0)
    for part, name in PARTS.items():
        for label in classes:
            found = _images(Path(root, name, label))
            if part == "train" and not found:
                raise ScapError(f"{Path(root, name, label)}: holds no images; add some, or delete the folder")
            counts[part] += len(found)
            digest.update(b"".join(b"%b/%b\0%d\n" % (name.encode(), os.fsencode(path), size) for path, size in found))
        if not counts[part]:
            raise ScapError(f"{Path(root, name)}: its folders hold no images")
    return Survey(counts["train"], counts["test"], digest.hexdigest()[:16])


def _images(folder: Path) -> list[tuple[str, int]]:
    """Path and bytes of each image in a folder of a class and below, in order; none where there is no folder."""
    found, folders, above = [], [str(folder)] if folder.is_dir() else [], len(str(folder.parent)) + 1
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.lower().endswith(ENDINGS):
                    found.append((entry.path[above:], entry.stat().st_size))
    return sorted(found)


def _names(folder: Path, wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    """Names in a folder, but hidden ones, in alphabetical order."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if wanted(entry) and not entry.name.startswith("."))
