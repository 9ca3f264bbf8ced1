"""The quickstart from nothing to its figures: wall and processor seconds, with and without jobs forked from a warm process.

Each run makes everything in a copy of the project of its own, in turns, with all cores or `--threads`. Processor seconds are
those of Snakemake and all that it started. The artifacts of the two ways are compared byte by byte.
"""

import argparse
import hashlib
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import Row, parse, say, write_table
from workflow.warm_jobs import FRESH

PROJECT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config", "profiles", "scap", "workflow")
WAYS = {"a new process imports PyTorch for each job": {FRESH: "1"}, "jobs are forked from a process that has": {}}
TIMED = ("history.csv", ".history.csv", ".provenance.json")  # they hold seconds or dates, and so do the tables of runs


def copy_project(folder: Path) -> None:
    """What a run needs, without results."""
    for name in PARTS:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, folder)


def measure(folder: Path, way: str, target: list[str]) -> Row:
    """Seconds of one run in an empty copy."""
    copy_project(folder)
    command = [sys.executable, "-m", "snakemake", "--cores", str(torch.get_num_threads()), *target]
    environment = {key: value for key, value in os.environ.items() if key != FRESH} | WAYS[way]
    before, start = _processor(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"error: the quickstart failed:\n{done.stdout}{done.stderr}")
    jobs = int(re.findall(r"(\d+) jobs?:", done.stderr)[0])
    return {"way": way, "jobs": jobs, "s": elapsed, "processor s": _processor() - before}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def artifacts(folder: Path) -> dict[str, str]:
    """The digests of what does not hold its own time."""
    files = [path for path in sorted((folder / "results").rglob("*")) if path.is_file() and not path.name.endswith(TIMED)]
    files = [path for path in files if "results/tables" not in path.as_posix() and "results/figures" not in path.as_posix()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(options: argparse.Namespace) -> None:
    """Both ways in turns, once each with --quick, which makes a single file."""
    target, rows, made = ["results/data/digits.safetensors"] if options.quick else [], [], []
    for repeat in range(1 if options.quick else 3):
        for way in WAYS:
            say(f"{way}, run {repeat + 1}")
            with tempfile.TemporaryDirectory() as name:
                rows.append(measure(Path(name), way, target))
                made.append(artifacts(Path(name)))
    if any(each != made[0] for each in made):
        raise SystemExit("error: the runs made different files")
    table = []
    for way in WAYS:
        runs = [row for row in rows if row["way"] == way]
        medians = {key: statistics.median(row[key] for row in runs) for key in ("s", "processor s")}
        table.append({"way": way, "jobs": runs[0]["jobs"], **medians})
    note = f"from an empty folder; median of {len(rows) // len(WAYS)}; {len(made[0])} artifacts, the same bytes in all runs"
    write_table("quickstart", table, options, note)


if __name__ == "__main__":
    main(parse(__doc__))
