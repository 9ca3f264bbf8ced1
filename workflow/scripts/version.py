"""The version of a job's code."""

from collections.abc import Iterable
from pathlib import Path

from scap.data.sources import md5


def code_version(library: Iterable[str]) -> str:
    """Checksums of a script and the modules that it imports: a training that another code began is not continued."""
    return " ".join(md5(Path(path)) for path in library)
