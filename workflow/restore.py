"""Restore what DVC stores, verify it, and tell Snakemake what made it: python -m workflow.restore [POINTER.dvc ...]

Without arguments, all results: those of pointers (results/**/*.dvc), and the small files that git has. `data.dvc` comes from
the DVC cache or remote, else from --source FOLDER, else from the official address. Everything is compared with its pointer byte
by byte; a damaged cache object is fetched again. --check compares what the remote holds with the pointers, and changes nothing.
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from scap.data.sources import RAW_FILES, md5
from scap.errors import ScapError
from workflow.pointers import listed_files, outs, tracked_files
from workflow.records import check_recording, provenance_files, restore_records
from workflow.store import (
    RestoreError,
    cache_object,
    copy_whole,
    dvc,
    fetch_object,
    has_remote,
    in_git,
    read_remote,
    remote,
    remote_path,
    store_in_project,
)

DATA, RESULTS = Path("data.dvc"), Path("results")
Files = list[tuple[Path, str]]


def fetch(pointers: list[Path]) -> None:
    """Let DVC fetch what pointers name, all at once or, where one of them fails, one by one.

    It never overwrites what is not tracked. What it could not fetch is mended file by file afterwards.
    """
    command = "pull" if has_remote() else "checkout"
    if not pointers or dvc(command, *map(str, pointers)).returncode == 0:
        return
    for pointer in pointers if len(pointers) > 1 else []:
        dvc(command, str(pointer))


def wrong_files(pointer: Path) -> Files:
    """The files of a pointer that are missing or differ from it, and the MD5 that they should have."""
    return [(path, wanted) for path, wanted in tracked_files(pointer) if not path.is_file() or md5(path) != wanted]


def mend(wrong: Files) -> Files:
    """Replace copies of damaged cache objects and files that are missing; those that stay wrong.

    A file that differs is deleted only where it has the very bytes of a damaged cache object: else it may be a user's own work.
    """
    for path, wanted in wrong:
        cached = cache_object(wanted)
        if path.is_file() and cached.is_file() and md5(path) == md5(cached) != wanted:
            print(f"{path}: damaged in the cache (MD5 is not {wanted}); fetched again", file=sys.stderr)
            path.unlink()
        if not path.exists() and (found := fetch_object(wanted)):
            copy_whole(found, path, wanted)
    return [(path, wanted) for path, wanted in wrong if not path.is_file() or md5(path) != wanted]


def restore_results(pointer: Path) -> None:
    """Verify what was fetched, mend what is missing or damaged, settle with Snakemake."""
    wrong = mend(wrong_files(pointer))
    for path, _ in outs(pointer):
        for output in restore_records(path):
            print(f"{output}: came without Snakemake's record and will be made again", file=sys.stderr)
    if missing := [(path, wanted) for path, wanted in wrong if not path.exists()]:
        raise RestoreError(f"{pointer}: {_unavailable(missing)}; or let snakemake make the files again")
    if wrong:
        kept = f"{len(wrong)} files differ or are missing, the first is {wrong[0][0]}"
        raise RestoreError(f"{pointer}: {kept}; they are kept: dvc add what is yours, delete the rest and run this again")
    print(f"{pointer}: restored")


def _unavailable(files: Files) -> str:
    names = ", ".join(f"{path} ({wanted[:2]}/{wanted[2:]})" for path, wanted in files)
    push = "Push them again from a clone that has them, after deleting what the remote has of them (docs/storage.md)"
    return f"neither the cache nor the remote has, undamaged: {names}. {_from_project() or push}"


def _from_project() -> str:
    """How damaged or missing objects come back where the remote is a folder of the project; else ""."""
    store = store_in_project()
    if store is None:
        return ""
    way = f"git checkout -- {store}" if in_git() else f"copy {store}/ from the project's archive"
    return f"Bring back what the project has of them ({way}) and run this again"


def restore_data(pointer: Path, source: Path | None) -> None:
    """The raw files: kept where they are right, else from `source`, the remote, or the official address."""
    for path, wanted in wrong_files(pointer):
        if path.exists():
            raise RestoreError(f"{path}: damaged (MD5 {md5(path)}, not {wanted}); delete it and run this again")
    if wrong_files(pointer):
        fetch([pointer])
    if missing := mend(wrong_files(pointer)):
        if source is None:
            _download([path for path, _ in missing])
        else:
            _copy(missing, source)
    if wrong := wrong_files(pointer):
        raise RestoreError(f"{wrong[0][0]}: damaged (MD5 is not {wrong[0][1]}); delete it and run this again")
    committed = dvc("commit", "--force", str(pointer))  # into the cache, so that dvc status is clean and dvc push can send it
    if committed.returncode:
        raise RestoreError(f"{pointer}: dvc commit failed\n{committed.stderr.strip()}")
    print(f"{pointer}: {len(list(tracked_files(pointer)))} files, verified")


def _copy(missing: Files, source: Path) -> None:
    found = {}
    for path, _ in missing:
        places = [place for place in (source / path.name, source / path.parent.name / path.name) if place.is_file()]
        if not places:
            raise RestoreError(f"--source: {source} holds no {path.parent.name}/{path.name}")
        found[path] = places[0]
    for path, wanted in missing:
        copy_whole(found[path], path, wanted)


def _download(missing: list[Path]) -> None:
    from scap.data.datasets import download

    for name, files in RAW_FILES.items():
        roots = {path.parents[len(Path(file).parts) - 1] for path in missing for file in files if path.match(file)}
        for root in roots:
            download(name, root)


@cache
def _in_remote(name: str) -> str | None:
    return read_remote(name)


def check_remote(pointer: Path) -> None:
    """Compare every object of a pointer in the remote with its name; RestoreError names those that are missing or damaged."""
    if remote() is None:
        raise RestoreError(f"{pointer}: no DVC remote is configured; dvc remote add --default NAME URL")
    names: dict[str, Path] = {}
    for path, name in outs(pointer):
        names[name] = path
        if name.endswith(".dir") and (listing := fetch_object(name)):
            names |= {wanted: file for file, wanted in listed_files(pointer, path, listing.read_bytes())}
    found = {name: _in_remote(name) for name in names}
    wrong = [name for name in names if found[name] != name.removesuffix(".dir")]
    if wrong:
        what = "; ".join(f"{names[name]} is {'damaged' if found[name] else 'missing'} ({remote_path(name)})" for name in wrong)
        # While the list of a folder is there, DVC takes all of it for pushed.
        deleted = [remote_path(name) for name in names if found[name] and (name in wrong or name.endswith(".dir"))]
        first = f"delete {' '.join(deleted)} there, then " if deleted else ""
        fix = _from_project() or f"To mend it: {first}dvc push {pointer} from a clone that has the files"
        raise RestoreError(f"{pointer}: in the remote, {what}. {fix}")
    print(f"{pointer}: {len(names)} objects in the remote, all sound")


def _each(pointers: list[Path], act: Callable[[Path], object]) -> list[Path]:
    """Those of the pointers for which `act` succeeds; an error line for each of the others."""
    done = []
    for pointer in pointers:
        try:
            act(pointer)
            done.append(pointer)
        except ScapError as error:
            print(f"error: {error}", file=sys.stderr)
    return done


def main() -> int:
    """Restore or check every pointer; 1 where one could not be restored, after the others were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pointers", nargs="*", type=Path, help="default: results/**/*.dvc")
    parser.add_argument("--source", type=Path, help="folder with the raw files of data.dvc (cifar-10-batches-py or above)")
    parser.add_argument("--check", action="store_true", help="verify what the remote holds; nothing is restored")
    options = parser.parse_args()
    pointers = options.pointers or sorted(Path("results").rglob("*.dvc"))
    if not pointers and not any(provenance_files(RESULTS)):
        print("error: no pointer below results/ (*.dvc): nothing was stored in this clone; git pull", file=sys.stderr)
        return 1
    if options.check:
        return int(len(_each(pointers, check_remote)) < len(pointers))
    if pointers != [DATA] and not _each([RESULTS], lambda _: check_recording()):
        return 1
    sound = _each(pointers, lambda pointer: list(tracked_files(pointer)))  # before DVC is let at them
    fetch([pointer for pointer in sound if pointer != DATA])
    done = _each(sound, lambda pointer: restore_data(pointer, options.source) if pointer == DATA else restore_results(pointer))
    if not options.pointers:
        if not _each([RESULTS], restore_records):
            return 1
        print(f"{sum(1 for _ in provenance_files(RESULTS))} results are known to Snakemake")
    return int(len(done) < len(pointers))


if __name__ == "__main__":
    sys.exit(main())
