"""Files that appear complete or not at all: written under a hidden name, locked meanwhile, then renamed. Imports no torch."""

import errno
import glob
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scap.errors import ScapError

HOST = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node())[:40]
PART = re.compile(r"\..+?(\.(?P<host>[A-Za-z0-9-]*))?\.(?P<pid>\d+)\.part")  # .gitignore and .dvcignore know the suffix
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def hidden_name(path: Path) -> Path:
    """The name of a file while it is written: it tells the machine and the process that writes."""
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")


class WholeFile:
    """Context manager: what is written to it appears as the file `path` when the block has ended well, else nothing does.

    Missing folders are made. ScapError where the place cannot be written; on a full disk it tells how much is `needed`
    (bytes; what was written until then, if that is not known before) and how much is free.
    """

    def __init__(self, path: str | Path, needed: int = 0) -> None:
        self.path, self.needed, self.written = Path(path), needed, 0
        self.hidden = hidden_name(self.path)

    def __enter__(self) -> Self:
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):  # by a killed process
                if abandoned(left, started=0):
                    left.unlink(missing_ok=True)
            self.file = open(self.hidden, "wb", buffering=0)  # the mode is the umask's
        _lock(self.file.fileno())  # until it is closed
        return self

    def write(self, data: Any, position: int | None = None) -> None:
        """Write bytes, or anything with a buffer, at the end or at a position."""
        view = memoryview(data).cast("B")
        self.needed = max(self.needed, self.written + len(view))
        with self._explained():
            if position is not None:
                self.file.seek(position)
            while view:  # an unbuffered write may take a part only
                count = self.file.write(view)
                self.written, view = self.written + count, view[count:]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with self._explained():
                self.file.close()
                if kind is None:
                    os.replace(self.hidden, self.path)
        finally:
            self.hidden.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ScapError(_problem(self.path, error, self.needed, self.written)) from error


def _problem(path: Path, error: Exception, needed: int, written: int) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) not in FULL:
        return f"{path}: cannot be written ({reason}); make room for it there, or choose another place"
    free = shutil.disk_usage(path.parent).free + written  # what was written is given back
    sizes = f"{readable(needed)} are needed, {readable(free)} are free"
    return f"{path}: cannot be written ({reason}): {sizes}; delete something there and run this again"


def readable(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def write_whole(path: str | Path, data: bytes | str) -> None:
    """Write a file that appears complete or not at all; ScapError where the place cannot be written."""
    data = data.encode() if isinstance(data, str) else data
    with WholeFile(path, needed=len(data)) as file:
        file.write(data)


def write_json(path: str | Path, values: dict[str, Any], indent: int = 2) -> None:
    """Write a JSON file, whole or not at all; what JSON does not know as text, numbers only where they are finite."""
    try:
        text = json.dumps(values, indent=indent, default=str, allow_nan=False)
    except ValueError as error:
        raise ScapError(f"{path}: a number for it is NaN or infinite; what it was computed from is damaged") from error
    write_whole(path, text + "\n")


def _lock(descriptor: int) -> bool | None:
    """Lock an open file for this process: whether it could; None where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def abandoned(path: Path, started: float) -> bool:
    """Whether a half-written file can go: nobody holds it, and its process has ended or it is older than `started`.

    `started` (seconds since the epoch) is when the caller's run began. Where the file system has no locks, files of
    other machines stay: nothing tells whether they are still written.
    """
    match = PART.fullmatch(path.name)
    ended = match is not None and match["host"] == HOST and not _runs(int(match["pid"]))
    try:
        with path.open("rb+") as file:
            old = os.fstat(file.fileno()).st_mtime < started
            locked = _lock(file.fileno()) if old or ended else False  # a young file may be on its way to its own lock
    except OSError:  # it has just been renamed, or is another user's
        return False
    return locked is True or (ended and locked is None)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no process at all
        return True
    return True
