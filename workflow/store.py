"""DVC's cache and remote, object by object: an object is named by the MD5 of its content, so each can be verified."""

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scap.data.sources import md5
from scap.errors import ScapError
from scap.writing import WholeFile, write_whole


class RestoreError(ScapError):
    """What a user can do something about."""


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC; where there is no git, it is told so, or it would refuse to work."""
    with TemporaryDirectory() as folder:
        write_whole(Path(folder, "config"), "[core]\n    no_scm = true\n")
        below = {} if in_git() else {"DVC_SYSTEM_CONFIG_DIR": folder}  # it ranks below all other settings
        environment = os.environ | below
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def in_git() -> bool:
    """Whether the project is a git repository: it is none where it came as a ZIP."""
    return any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents))


@cache
def has_remote() -> bool:
    """Whether a DVC remote is configured."""
    return bool(dvc("remote", "list").stdout.strip())


@cache
def cache_folder() -> Path:
    """DVC's cache."""
    done = dvc("cache", "dir")
    if done.returncode or not done.stdout.strip():
        raise RestoreError(f"dvc: {done.stderr.strip() or 'no cache'}; run this in the folder of the project")
    return Path(done.stdout.strip())


def object_path(name: str) -> Path:
    """Where the content with this MD5 is kept, in a remote as in the cache."""
    return Path("files/md5", name[:2], name[2:])


def cache_object(name: str) -> Path:
    """Where DVC's cache keeps the content with this MD5."""
    return cache_folder() / object_path(name)


@cache
def remote() -> Any:
    """DVC's default remote: `oid_to_path(name)` of an object, and its file system `fs`; None where none is configured."""
    if not has_remote():
        return None
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Repo(config={} if in_git() else {"core": {"no_scm": True}}).cloud.get_remote_odb(hash_name="md5")
    except DvcException as error:
        raise RestoreError(f"dvc: the remote cannot be opened ({error}); see `dvc remote list`") from error


def store_in_project() -> Path | None:
    """The folder of DVC's default remote, where it is one of this project."""
    odb = remote()
    if odb is None or odb.fs.protocol != "local":
        return None
    path = Path(str(Path(odb.path).resolve()).removesuffix("/files/md5"))  # as in `object_path`
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else None


def remote_path(name: str) -> str:
    """Where the remote keeps an object, for people."""
    return str(remote().oid_to_path(name))


def read_remote(name: str, target: WholeFile | None = None) -> str | None:
    """The MD5 of what the remote keeps under this name, or None; its content goes to `target`."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with remote().fs.open(remote_path(name), "rb") as file:
            while part := file.read(2**22):
                digest.update(part)
                if target is not None:
                    target.write(part)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RestoreError(f"{remote_path(name)}: the remote cannot be read ({error})") from error
    return digest.hexdigest()


class _Unsound(Exception):
    """Ends the writing of a file that is not to appear."""


def fetch_object(name: str) -> Path | None:
    """An object of the cache, sound: a damaged one is removed, and what is not there comes from the remote; else None."""
    path = cache_object(name)
    if path.is_file():
        if md5(path) == name.removesuffix(".dir"):
            return path
        path.unlink()
    if remote() is None:
        return None
    try:
        with WholeFile(path) as file:
            if read_remote(name, file) != name.removesuffix(".dir"):
                raise _Unsound
    except _Unsound:
        return None
    path.chmod(0o444)  # as DVC protects its objects
    return path


def copy_whole(source: Path, path: Path, wanted: str) -> None:
    """Copy a file, whole or not at all; RestoreError where its MD5 is not the one wanted."""
    digest = hashlib.md5(usedforsecurity=False)
    with source.open("rb") as content, WholeFile(path, needed=source.stat().st_size) as file:
        while part := content.read(2**22):
            digest.update(part)
            file.write(part)
        if digest.hexdigest() != wanted:
            raise RestoreError(f"{source}: damaged (MD5 {digest.hexdigest()}, not {wanted}); it was not copied to {path}")
