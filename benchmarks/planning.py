"""What planning costs: `snakemake -n` on experiments of more and more jobs, CPU seconds and how they grow.

The experiment is generated: VGG16 on the digits, as many seeds as are needed, each with one baseline, four criteria, five
sizes and two compensations, which are 114 jobs. Nothing has been made yet, so that every job is planned. CPU seconds are those
of the whole process and its children, after a run that has filled the caches of files and of compiled modules; the exponent
is that of the seconds over the jobs, from one size to the next, and `start s`, those of a plan of one job, are taken off.
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Row, parse, say, write_table

ROOT = Path(__file__).parents[1]
JOBS, QUICK_JOBS, JOBS_A_SEED = (300, 1000, 3000, 10_000), (114, 228), 114
GRID = {
    "networks": ["vgg16-digits"],
    "criteria": ["scap", "conditional", "l1", "random"],
    "widths": ["uniform"],
    "macs": [0.7, 0.5, 0.3, 0.15, 0.1],
    "compensations": ["none", "full"],
    "schedules": ["none"],
}


def planned(folder: Path, target: str, seeds: int) -> tuple[int, float]:
    """Number of jobs that a target plans with so many seeds, and the CPU seconds that planning takes."""
    file = folder / "growth.json"
    runs = [GRID | {"seeds": list(range(seeds))}]
    file.write_text(
        json.dumps({"comparisons": {"growth": {"runs": runs, "figures": ["tradeoff"]}}, "targets": {"growth": ["growth"]}})
    )
    command = [sys.executable, "-m", "snakemake", target, "--dry-run", "--quiet", "rules", "--directory", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--configfile", str(file)], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = re.search(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or total is None:
        raise RuntimeError(f"snakemake plans nothing: {done.stderr[-2000:]}")
    return int(total[1]), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows_of(sizes: list[int], folder: Path) -> list[Row]:
    """One row a size."""
    planned(folder, "results/data/digits.safetensors", 1)
    _, start = planned(folder, "results/data/digits.safetensors", 1)
    rows: list[Row] = []
    for size in sizes:
        say(f"about {size} jobs")
        jobs, taken = planned(folder, "growth", max(1, round(size / JOBS_A_SEED)))
        before = rows[-1] if rows else None
        row = {"jobs": jobs, "CPU s": taken, "start s": start, "ms a job": 1e3 * (taken - start) / jobs}
        rows.append(row | {"exponent": slope(before, row)})
    return rows


def slope(before: Row | None, row: Row) -> float:
    """Exponent of the CPU seconds beyond the start over the jobs, from one size to the next."""
    if before is None:
        return math.nan
    seconds = [each["CPU s"] - each["start s"] for each in (before, row)]
    return math.log(seconds[1] / seconds[0]) / math.log(row["jobs"] / before["jobs"])


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this script understands beside what all do."""
    parser.add_argument("--jobs", nargs="+", type=int, default=list(JOBS), help="about so many jobs, one size after the other")


def main(options: argparse.Namespace) -> None:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(list(QUICK_JOBS) if options.quick else options.jobs, Path(folder))
    write_table("planning", rows, options, "snakemake -n of jobs none of which has been run")


if __name__ == "__main__":
    main(parse(__doc__, extra=arguments))
