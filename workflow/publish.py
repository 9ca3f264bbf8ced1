"""Publish what a target made: python -m workflow.publish TARGET|FILE ... [--models PATTERN ...]

Small files (tables, figures as PNG, scores, metrics, histories, and the provenance beside each) are added to git at the path
where the workflow made them; models whose path fits a pattern are added to DVC, one pointer each, and pushed to its default
remote. Where that is a folder of the repository (store/), git gets its objects too. Commit by hand.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from scap.data.sources import md5
from scap.errors import ScapError
from scap.reading import read_json
from workflow.configuration import load_configuration
from workflow.lineage import Lineage
from workflow.records import export_records
from workflow.scripts.provenance import SUFFIX
from workflow.store import dvc, object_path, store_in_project

SMALL = (".csv", ".json", ".png")
LARGEST = 1_000_000  # bytes of a file in git
MODEL = ".safetensors"
STORE = 100_000_000  # bytes of all models in git


def published(config: dict[str, Any], names: Iterable[str]) -> list[Path]:
    """The files of targets and comparisons, and files named one by one, with what was made on the way to them."""
    lineage = Lineage(config)
    files: list[str] = []
    for name in names:
        if name in config["comparisons"]:
            config["targets"].setdefault(name, [name])
        if name in config["targets"]:
            made = lineage.target(name)
            if not any(Path(file).is_file() or Path(f"{file}{SUFFIX}").is_file() for file in made):
                raise ScapError(f"{name}: nothing of it has been made; run snakemake {name} first")
            files += made
        elif Path(name).is_file():
            files.append(name)
        else:
            raise ScapError(
                f"{name}: is no target, comparison or file; run snakemake {name} first, or correct the name; "
                f"of what a --configfile asks for name the files, such as results/tables/{name}.csv"
            )
    return with_sources(Path(file) for file in dict.fromkeys(files))


def with_sources(files: Iterable[Path]) -> list[Path]:
    """The files, what the same jobs made beside them, and what all of it was made of, as the provenance files say.

    Without these another clone could not tell that, say, a baseline need not be trained again for another threshold.
    """
    found: dict[Path, None] = {}
    waiting, folders = list(files), {}
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        if path.parent not in folders:
            notes = {note.with_name(note.name.removesuffix(SUFFIX)): read_json(note) for note in path.parent.glob(f"*{SUFFIX}")}
            folders[path.parent] = notes
        if note := folders[path.parent].get(path):
            waiting += [other for other, its in folders[path.parent].items() if _job(its) == _job(note)]
            inputs = (note.get("snakemake") or {}).get("input") or []
            waiting += [Path(name) for name in inputs if name.startswith("results/")]
    return sorted(found)


def _job(note: dict[str, Any]) -> tuple[Any, Any]:
    return note.get("rule"), note.get("wildcards")


def small_files(files: Iterable[Path]) -> list[Path]:
    """What git gets: the small files that are there, and the provenance of every file, those that stay out included.

    Not that of data sets: each clone makes these itself.
    """
    found = []
    for file in files:
        if file.is_relative_to("results/data"):
            continue
        if file.suffix in SMALL and file.is_file():
            if file.stat().st_size > LARGEST:
                raise ScapError(f"{file}: has {file.stat().st_size} bytes, more than git is to hold; publish it by DVC")
            found.append(file)
        if (note := Path(f"{file}{SUFFIX}")).is_file():
            found.append(note)
    return found


def add_to_git(files: list[Path]) -> None:
    """Add files although results/ is ignored."""
    for start in range(0, len(files), 500):  # a command line has its limits
        command = ["git", "add", "--force", *map(str, files[start : start + 500])]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ScapError("git: is not installed, or not on the path; install it, as git gets what is published") from error
        if done.returncode:
            raise ScapError(f"git add: {done.stderr.strip()}")


def check_size(store: Path, models: list[Path]) -> None:
    """Refuse what would make the models in git too large."""
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    added = sum(model.stat().st_size for model in models if not (store / object_path(md5(model))).is_file())
    if held + added > STORE:
        raise ScapError(
            f"{store}: would hold {(held + added) / 1e6:.0f} MB, more than {STORE / 1e6:.0f}; name fewer models (--models), or "
            "another remote (docs/storage.md)"
        )


def models_of(files: Iterable[Path], patterns: list[str]) -> list[Path]:
    """The models that are there and whose path fits a pattern; ScapError for a pattern that fits none."""
    there = [file for file in files if file.suffix == MODEL and file.is_file()]
    for pattern in patterns:
        if not any(fnmatch(str(file), pattern) for file in there):
            raise ScapError(f"--models: {pattern!r} fits no model that was made; quote it, and write it as '*/baseline{MODEL}'")
    return [file for file in there if any(fnmatch(str(file), pattern) for pattern in patterns)]


def add_to_dvc(models: list[Path]) -> None:
    """Add models to DVC and push them; their pointers go to git, and their objects where git holds the remote."""
    if not models:
        return
    if store := store_in_project():
        check_size(store, models)
    pointers = [f"{model}.dvc" for model in models]
    for command, names in (("add", list(map(str, models))), ("push", pointers)):
        if (done := dvc(command, *names)).returncode:
            raise ScapError(f"dvc {command}: {done.stderr.strip()}")
    add_to_git([*map(Path, pointers), *([store] if store else [])])


def main() -> int:
    """Publish the named targets; 1 with one line where that is not possible."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="+", help="targets, comparisons or files")
    parser.add_argument("--models", nargs="*", default=[], help="patterns of models for DVC, such as '*/baseline.safetensors'")
    options = parser.parse_args()
    try:
        if not Path("config/config.yaml").is_file():
            raise ScapError(f"{Path.cwd()}: is not the folder of the project, where config/config.yaml is; go there")
        export_records()  # those of a run that was killed are not in the provenance files yet
        files = published(load_configuration(Path("config"), {}), options.names)
        small, models = small_files(files), models_of(files, options.models)
        if not small and not models:
            raise ScapError(
                f"{' '.join(options.names)}: nothing to publish; git takes {' '.join(SMALL)}, DVC what --models fits"
            )
        add_to_git(small)
        add_to_dvc(models)
    except ScapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(small)} files in git, {len(models)} models in DVC; now git commit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
