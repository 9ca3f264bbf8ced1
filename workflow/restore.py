"""Restore what DVC stores, verify it, and tell Snakemake what made it: python -m workflow.restore [POINTER.dvc ...]

Without arguments, all results (results/**/*.dvc). `data.dvc` comes from the DVC cache or remote, else from --source FOLDER,
else from the official address. Everything is compared with its pointer byte by byte; a damaged cache object is fetched anew.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from scap.sources import RAW_FILES
from workflow.records import restore_records

DATA = Path("data.dvc")


class RestoreError(Exception):
    """What a user can do something about."""


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def has_remote() -> bool:
    """Whether a DVC remote is configured."""
    return bool(dvc("remote", "list").stdout.strip())


def md5(path: Path) -> str:
    """MD5 of a file, as DVC names its content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cache_object(name: str) -> Path:
    """Where DVC's cache keeps the content with this MD5."""
    return Path(dvc("cache", "dir").stdout.strip(), "files/md5", name[:2], name[2:])


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


def restore_results(pointer: Path) -> None:
    """Pull, verify, mend what the cache holds damaged, settle with Snakemake."""
    command = "pull" if has_remote() else "checkout"
    done = dvc(command, str(pointer))
    if done.returncode:
        raise RestoreError(f"{pointer}: dvc {command} failed; what is there is kept\n{done.stderr.strip()}")
    wrong = wrong_files(pointer)
    if wrong:
        for path, wanted in wrong:
            print(f"{path}: damaged in the cache (MD5 is not {wanted}); fetched anew", file=sys.stderr)
            cache_object(wanted).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        dvc(command, str(pointer))
        if wrong := wrong_files(pointer):
            names = ", ".join(f"{path} ({wanted[:2]}/{wanted[2:]})" for path, wanted in wrong)
            for path, wanted in wrong:
                cache_object(wanted).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise RestoreError(
                f"{pointer}: missing or damaged in the remote too: {names}. Delete these objects there and push them "
                "again from a clone that has them; or let snakemake make the files again"
            )
    for folder in {pointer.parent / out["path"] for out in yaml.safe_load(pointer.read_text())["outs"]}:
        for output in restore_records(folder):
            print(f"{output}: came without Snakemake's record and will be made again", file=sys.stderr)
    print(f"{pointer}: restored")


def restore_data(pointer: Path, source: Path | None) -> None:
    """The raw files: kept where they are right, else from `source`, the remote, or the official address."""
    for path, wanted in wrong_files(pointer):
        if path.exists():
            raise RestoreError(f"{path}: damaged (MD5 {md5(path)}, not {wanted}); delete it and run this again")
    if wrong_files(pointer):
        dvc("pull" if has_remote() else "checkout", str(pointer))
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
    from scap.data import download
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
    failed = False
    for pointer in options.pointers or sorted(Path("results").rglob("*.dvc")):
        try:
            if not pointer.is_file():
                raise RestoreError(f"{pointer}: no such pointer; git pull, or dvc add FOLDER to make one")
            if pointer == DATA:
                restore_data(pointer, options.source)
            else:
                restore_results(pointer)
        except RestoreError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
