"""What Snakemake knows about a result travels with it, in its provenance file, and back.

Snakemake decides by the records in .snakemake/metadata (parameters, and checksums of the inputs) and by dates. A record is
therefore copied into the provenance file beside the result when a run ends, and put back when the result is restored,
together with the date: then Snakemake judges it as it would where it was made.
"""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

from workflow.scripts.provenance import SUFFIX, write_json

METADATA = Path(".snakemake/metadata")
NAME_MAX = 255


def record_path(output: str) -> Path:
    """Where Snakemake keeps the record of an output file."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + NAME_MAX - 1] for start in range(0, len(name), NAME_MAX - 1)]
    return METADATA.joinpath(*("@" + part for part in parts[:-1]), parts[-1])


def provenance_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every result below a folder, a cache that is not there included, and its provenance file."""
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        yield str(path).removesuffix(SUFFIX), path


def export_records(folder: Path = Path("results")) -> None:
    """Copy Snakemake's record of every result into its provenance file, where it differs."""
    for output, path in provenance_files(folder):
        record = record_path(output)
        if record.is_file():
            provenance, known = json.loads(path.read_text()), json.loads(record.read_text())
            if provenance.get("snakemake") != known:
                write_json(path, provenance | {"snakemake": known})


def restore_records(folder: Path) -> list[str]:
    """Give Snakemake the records and dates of the results below a folder; those that came without a record.

    A result then is exactly as old as it was, so that whatever differs from what it was made with is seen: sources of a
    fresh clone are younger and are compared by content, other results by content or age. A cache that was not stored gets
    its record too: by this Snakemake knows that it would be made of the same, and need not be made.
    """
    unknown = []
    for output, path in provenance_files(folder):
        known = json.loads(path.read_text()).get("snakemake")
        if known is None:
            unknown.append(output)
            continue
        record = record_path(output)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, known)
        if Path(output).is_file():
            os.utime(output, (known["endtime"], known["endtime"]))
    return unknown
