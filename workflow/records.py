"""What Snakemake knows about a result travels with it, in its provenance file, and back.

Snakemake decides by the records in .snakemake/metadata (parameters, and checksums of the inputs) and by dates. A record is
therefore copied into the provenance file beside the result when a run ends, and put back when the result is restored,
together with the date: then Snakemake judges it as it would where it was made.
"""

import base64
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from scap.errors import ScapError
from scap.reading import read_json
from scap.writing import write_json
from workflow.scripts.provenance import SUFFIX

TRIED = "9.27"  # the Snakemake whose records these are: name and content of the files below
METADATA = Path(".snakemake/metadata")
INCOMPLETE = Path(".snakemake/incomplete")  # here, while the job that makes it runs
NAME_MAX = 255


def check_snakemake() -> None:
    """Raise ScapError where another Snakemake is installed than the one whose records are known here."""
    found = version("snakemake")
    if found.split(".")[:2] != TRIED.split("."):
        raise ScapError(
            f"Snakemake {found}: results travel with the records of Snakemake {TRIED}, and those of this one may differ; "
            "install that one (pip install -c constraints.txt snakemake), or, if tests/workflow/test_storage.py passes with "
            "yours, name it in workflow/records.py"
        )


def check_recording() -> None:
    """Raise ScapError where records cannot be given to Snakemake: it is another one, or its folder cannot be written."""
    check_snakemake()
    try:
        METADATA.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=METADATA):
            return
    except OSError as error:
        problem = f"cannot be written ({error.strerror}), but results travel with records that go there"
        raise ScapError(f"{METADATA}: {problem}; delete it, or give yourself the right to write") from error


def record_path(output: str, folder: Path = METADATA) -> Path:
    """Where Snakemake keeps the record of an output file."""
    name = base64.urlsafe_b64encode(os.fsencode(output)).decode()
    parts = [name[start : start + NAME_MAX - 1] for start in range(0, len(name), NAME_MAX - 1)]
    return folder.joinpath(*("@" + part for part in parts[:-1]), parts[-1])


def files_below(folder: Path, *patterns: str) -> Iterator[Path]:
    """Files whose name fits a pattern, behind links to other folders too: results may lie on another disk."""
    walked = [folder.resolve()]

    def is_new(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = path.resolve()
        new = not any(target.is_relative_to(other) for other in walked)  # else a link may lead round in a circle
        walked.append(target)
        return new

    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if is_new(Path(place, name))]
        yield from (Path(place, name) for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def provenance_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every result below a folder, a cache that is not there included, and its provenance file."""
    for path in sorted(files_below(folder, f"*{SUFFIX}")):
        yield str(path).removesuffix(SUFFIX), path


def read_or_warn(path: Path) -> dict[str, Any] | None:
    """A provenance file or record; None, with a warning, where it is damaged: it is information, no run ends for it."""
    try:
        return read_json(path)
    except ScapError as error:
        print(f"warning: {error}; skipped", file=sys.stderr)
        return None


def export_records(folder: Path = Path("results")) -> None:
    """Copy Snakemake's record of every result into its provenance file, where it differs.

    A provenance file whose record is of a later time came with git and is not restored yet: it stays.
    """
    try:
        check_snakemake()
    except ScapError as error:
        print(f"warning: {error}; this run's results come without records", file=sys.stderr)
        return
    for output, path in provenance_files(folder):
        record = record_path(output)
        if not record.is_file():
            continue
        provenance, known = read_or_warn(path), read_or_warn(record)
        if provenance is not None and known is not None and _is_news(known, provenance.get("snakemake")):
            try:
                write_json(path, provenance | {"snakemake": known}, indent=1)
            except ScapError as error:
                print(f"warning: {error}", file=sys.stderr)


def _is_news(known: Any, noted: Any) -> bool:
    return known != noted and not (_is_record(known) and _is_record(noted) and noted["endtime"] > known["endtime"])


def _is_record(known: Any) -> bool:
    """Whether this is a record with the time that a result was made at, in seconds."""
    made = known.get("endtime") if isinstance(known, dict) else None
    return isinstance(made, int | float) and 0 <= made < 2**33


def _date(path: str, seconds: float) -> None:
    try:
        os.utime(path, (seconds, seconds))
    except OSError as error:
        raise ScapError(f"{path}: cannot be given its date ({error.strerror}); make the file your own") from error


def restore_lost_records(folder: Path = Path("results")) -> None:
    """Give Snakemake the records back where it has none at all: it takes all that is there for up to date, whatever made it.

    So it is when .snakemake/ was deleted, or the folder is a copy without it. Files are as old as they are: what differs is
    seen by content. All records come at once, so that none are taken for all after a kill.
    """
    if METADATA.exists() or not any(provenance_files(folder)):
        return
    print(f"{METADATA} is not there; restored from the provenance files below {folder}/", file=sys.stderr)
    half = METADATA.with_name("metadata.part")
    try:
        unknown = restore_records(folder, half, dates=False)
        if half.exists():
            half.rename(METADATA)
    except (ScapError, OSError) as error:
        print(f"warning: {error}; this run does not see what was made with another configuration", file=sys.stderr)
        return
    if lost := [output for output in unknown if os.path.exists(output)]:
        problem = "came without Snakemake's record (its run was killed); this run does not see whether its settings are these"
        print(f"warning: {lost[0]}: {problem}; so did {len(lost) - 1} more; delete what may be old", file=sys.stderr)


def restore_records(folder: Path, records: Path = METADATA, dates: bool = True) -> list[str]:
    """Give Snakemake the records and dates of the results below a folder; those that came without a record.

    A result then is exactly as old as it was, so that whatever differs from what it was made with is seen: sources of a
    fresh clone are younger and are compared by content, other results by content or age. A cache that was not stored gets
    its record too: by this Snakemake knows that it would be made of the same, and need not be made.
    Raises ScapError where Snakemake is another than the one whose records are known here.
    """
    check_snakemake()
    unknown = []
    for output, path in provenance_files(folder):
        provenance = read_or_warn(path)
        known = None if provenance is None else provenance.get("snakemake")
        if not _is_record(known):
            unknown.append(output)
        else:
            write_json(record_path(output, records), known, indent=1)
            if dates and Path(output).is_file():
                _date(output, known["endtime"])
    return unknown
