"""Restore what DVC stores, verify it, and tell Snakemake what made it: python -m workflow.restore [POINTER.dvc ...]

Without arguments, all results (results/**/*.dvc). `data.dvc` comes from the DVC cache or remote, else from --source FOLDER,
else from the official address. Everything is compared with its pointer byte by byte; a damaged cache object is fetched anew.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from scap.data.sources import RAW_FILES, md5
from workflow.records import restore_records

DATA = Path("data.dvc")


class RestoreError(Exception):
    """What a user can do something about."""


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


@cache
def fetch_command() -> str:
    """`pull` where a DVC remote is configured, else `checkout`, from the cache alone."""
    return "pull" if dvc("remote", "list").stdout.strip() else "checkout"


def fetch(pointers: list[str]) -> bool:
    """Let DVC fetch what pointers name; whether it could. It never overwrites what is not tracked."""
    done = dvc(fetch_command(), *pointers) if pointers else None
    if done is None or done.returncode == 0:
        return True
    print(f"dvc {fetch_command()} did not end well; what is there is kept\n{done.stderr.strip()}", file=sys.stderr)
    return False


@cache
def cache_folder() -> Path:
    """DVC's cache."""
    return Path(dvc("cache", "dir").stdout.strip(), "files/md5")


def cache_object(name: str) -> Path:
    """Where DVC's cache keeps the content with this MD5."""
    return cache_folder() / name[:2] / name[2:]


def tracked_files(pointer: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a pointer and its MD5; a folder's list is itself an object of the cache."""
    for out in yaml.safe_load(pointer.read_text())["outs"]:
        path = pointer.parent / out["path"]
        if not out["md5"].endswith(".dir"):
            yield path, out["md5"]
            continue
        listing = cache_object(out["md5"])
        if not listing.is_file():
            raise RestoreError(f"{pointer}: its list of files is not in the cache; was it pushed (dvc push)?")
        if md5(listing) != out["md5"].removesuffix(".dir"):
            listing.unlink()
            raise RestoreError(f"{pointer}: its list of files was damaged in the cache and is removed; run this again")
        for entry in json.loads(listing.read_text()):
            yield path / entry["relpath"], entry["md5"]


def wrong_files(pointer: Path) -> list[tuple[Path, str]]:
    """The files of a pointer that are missing or differ from it, and the MD5 that they should have."""
    return [(path, wanted) for path, wanted in tracked_files(pointer) if not path.is_file() or md5(path) != wanted]


def restore_results(pointer: Path, fetched: bool) -> None:
    """Verify what was fetched, mend what the cache holds damaged, settle with Snakemake."""
    wrong = wrong_files(pointer)
    if wrong and not fetched:  # a difference may be work of the user's own
        raise RestoreError(f"{pointer}: {len(wrong)} files differ or are missing, the first is {wrong[0][0]}")
    if wrong:
        for path, wanted in wrong:
            if path.exists():
                print(f"{path}: damaged in the cache (MD5 is not {wanted}); fetched anew", file=sys.stderr)
        _forget(wrong)
        dvc(fetch_command(), str(pointer))
        if wrong := wrong_files(pointer):
            _forget(wrong)
            names = ", ".join(f"{path} ({wanted[:2]}/{wanted[2:]})" for path, wanted in wrong)
            raise RestoreError(
                f"{pointer}: missing or damaged in the remote too: {names}. Delete these objects there and push them "
                "again from a clone that has them; or let snakemake make the files again"
            )
    for out in yaml.safe_load(pointer.read_text())["outs"]:
        for output in restore_records(pointer.parent / out["path"]):
            print(f"{output}: came without Snakemake's record and will be made again", file=sys.stderr)
    print(f"{pointer}: restored")


def _forget(wrong: list[tuple[Path, str]]) -> None:
    for path, wanted in wrong:
        cache_object(wanted).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def restore_data(pointer: Path, source: Path | None) -> None:
    """The raw files: kept where they are right, else from `source`, the remote, or the official address."""
    for path, wanted in wrong_files(pointer):
        if path.exists():
            raise RestoreError(f"{path}: damaged (MD5 {md5(path)}, not {wanted}); delete it and run this again")
    if wrong_files(pointer):
        dvc(fetch_command(), str(pointer))
    if missing := [path for path, _ in wrong_files(pointer) if not path.exists()]:
        if source is None:
            _download(missing)
        else:
            _copy(missing, source)
    if wrong := wrong_files(pointer):
        raise RestoreError(f"{wrong[0][0]}: damaged (MD5 is not {wrong[0][1]}); delete it and run this again")
    committed = dvc("commit", "--force", str(pointer))  # into the cache, so that dvc status is clean and dvc push can send it
    if committed.returncode:
        raise RestoreError(f"{pointer}: dvc commit failed\n{committed.stderr.strip()}")
    print(f"{pointer}: {len(list(tracked_files(pointer)))} files, verified")


def _copy(missing: list[Path], source: Path) -> None:
    for path in missing:
        found = [place for place in (source / path.name, source / path.parent.name / path.name) if place.is_file()]
        if not found:
            raise RestoreError(f"--source: {source} holds no {path.parent.name}/{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[0], path)


def _download(missing: list[Path]) -> None:
    from scap.data.datasets import download
    from scap.errors import ScapError

    for name, files in RAW_FILES.items():
        roots = {path.parents[len(Path(file).parts) - 1] for path in missing for file in files if path.match(file)}
        for root in roots:
            try:
                download(name, root)
            except ScapError as error:
                raise RestoreError(str(error)) from error


def main() -> int:
    """Restore every pointer; 1 where one could not be restored, after the others were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pointers", nargs="*", type=Path, help="default: results/**/*.dvc")
    parser.add_argument("--source", type=Path, help="folder with the raw files of data.dvc (cifar-10-batches-py or above)")
    options = parser.parse_args()
    pointers = options.pointers or sorted(Path("results").rglob("*.dvc"))
    results = [str(pointer) for pointer in pointers if pointer != DATA and pointer.is_file()]
    fetched = fetch(results)
    errors = 0
    for pointer in pointers:
        try:
            if not pointer.is_file():
                raise RestoreError(f"{pointer}: no such pointer; git pull, or dvc add FOLDER to make one")
            if pointer == DATA:
                restore_data(pointer, options.source)
            else:
                restore_results(pointer, fetched)
        except RestoreError as error:
            print(f"error: {error}", file=sys.stderr)
            errors += 1
    return int(errors > 0 or not fetched)


if __name__ == "__main__":
    sys.exit(main())
