"""DVC's pointers, read with suspicion: whatever would leave the pointer's folder is refused before anything is fetched."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from workflow.store import RestoreError, cache_folder, fetch_object

MD5 = re.compile(r"[0-9a-f]{32}")
CONFLICT = re.compile(r"^(<{7}|={7}|>{7})", re.MULTILINE)
FORBIDDEN = (".git", ".dvc", ".snakemake")


def outs(pointer: Path) -> list[tuple[Path, str]]:
    """Files and folders of a pointer and their MD5 (of a folder: with `.dir`); RestoreError where it is damaged or hostile."""
    try:
        text = pointer.read_text()
        if CONFLICT.search(text):
            way_out = "take one side (git checkout --ours or --theirs), then run this again"
            raise RestoreError(f"{pointer}: holds the conflict markers of a merge; {way_out}")
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise RestoreError(f"{pointer}: no such pointer; git pull, or dvc add FOLDER to make one") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RestoreError(f"{pointer}: not readable ({str(error).splitlines()[0]}); git checkout it again") from error
    entries = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise RestoreError(f"{pointer}: names no outs; git checkout it again, or dvc add the folder")
    if content.get("wdir", ".") != ".":
        raise RestoreError(f"{pointer}: wdir {content['wdir']!r} leads elsewhere; a pointer must stand beside what it names")
    return [_out(pointer, entry) for entry in entries]


def _out(pointer: Path, entry: Any) -> tuple[Path, str]:
    path, name = (entry.get(key) if isinstance(entry, dict) else None for key in ("path", "md5"))
    if not isinstance(name, str) or not MD5.fullmatch(name.removesuffix(".dir")):
        raise RestoreError(f"{pointer}: an out has no MD5 ({name!r}); git checkout it again, or dvc add the folder")
    return inside(pointer, pointer.parent, path), name


def tracked_files(pointer: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a pointer and its MD5; a folder's list is itself an object, which is fetched and verified first."""
    for path, name in outs(pointer):
        if not name.endswith(".dir"):
            yield path, name
            continue
        listing = fetch_object(name)
        if listing is None:
            problem = f"its list of files ({name[:2]}/{name[2:]}) is neither in the cache nor, sound, in the remote"
            raise RestoreError(f"{pointer}: {problem}; was it pushed (dvc push)?")
        yield from listed_files(pointer, path, listing.read_bytes())


def listed_files(pointer: Path, folder: Path, listing: bytes) -> list[tuple[Path, str]]:
    """The files that a folder's list names."""
    try:
        entries = [(entry["relpath"], entry["md5"]) for entry in json.loads(listing)]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RestoreError(f"{pointer}: its list of files is damaged; dvc add the folder again") from error
    files = [(inside(pointer, folder, relpath), name) for relpath, name in entries]
    for path, name in files:
        if not isinstance(name, str) or not MD5.fullmatch(name):
            raise RestoreError(f"{pointer}: its list of files has no MD5 for {path} ({name!r}); dvc add the folder again")
    paths = {path for path, _ in files}
    if len(paths) < len(files) or any(parent in paths for path in paths for parent in path.parents):
        raise RestoreError(f"{pointer}: its list of files names one file twice; dvc add the folder again")
    return files


def inside(pointer: Path, folder: Path, name: Any) -> Path:
    """folder/name, where it stays in the folder; RestoreError for `..`, absolute paths, drives, links that lead out."""
    refused = f"{pointer}: {name!r} leaves the folder of the pointer; refused, and nothing of this pointer is restored"
    if not isinstance(name, str) or re.search(r"[\x00-\x1f\\]|://|^[A-Za-z]:", name):
        raise RestoreError(refused)
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or any(part.lower() in FORBIDDEN for part in parts):
        raise RestoreError(refused)
    path, base = folder / name, pointer.parent
    if not _place(path.parent).is_relative_to(_place(base)):
        raise RestoreError(f"{refused}: {path.parent} is reached through a link")
    if path.is_symlink() and not _in_cache(path):
        raise RestoreError(f"{refused}: {path} is a link; delete it")
    return path


@lru_cache(maxsize=4096)
def _place(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise RestoreError(f"{folder}: is a link without an end; delete it") from error


def _in_cache(path: Path) -> bool:
    """Whether a link is one that DVC made (`cache.type symlink`)."""
    return _place(path).is_relative_to(cache_folder().resolve())
