"""What each rule has cost: `python -m workflow.costs [FOLDER]` reads the benchmark files under logs/ (or FOLDER)."""

import sys
from pathlib import Path

import pandas as pd

COLUMNS = {"rule_name": "rule", "s": "seconds", "max_rss": "memory_mb"}  # as Snakemake writes them with --benchmark-extended


def costs(folder: Path) -> pd.DataFrame:
    """One row a rule: its jobs, their seconds in all, on average and at most, and the most memory of one, MB."""
    files = [table for path in sorted(folder.rglob("*.benchmark.tsv")) if (table := _read(path)) is not None]
    measured = [table[list(COLUMNS)].rename(columns=COLUMNS) for table in files if set(COLUMNS) <= set(table.columns)]
    if not measured:
        raise SystemExit(f"error: {folder}: no benchmark file there names its rule; run the workflow first")
    jobs = pd.concat(measured)
    memory = pd.to_numeric(jobs["memory_mb"], errors="coerce")  # a job of less than a second may have none
    groups = jobs.assign(memory_mb=memory).groupby("rule", sort=False)
    table = groups["seconds"].agg(jobs="size", total_s="sum", mean_s="mean", longest_s="max")
    return table.assign(memory_mb=groups["memory_mb"].max()).sort_values("total_s", ascending=False)


def _read(path: Path) -> pd.DataFrame | None:
    """A benchmark file; None, with a warning, where it is damaged: a killed job leaves one empty."""
    try:
        return pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        print(f"warning: {path}: not readable ({str(error).splitlines()[0]}); skipped", file=sys.stderr)
        return None


if __name__ == "__main__":
    print(costs(Path(*sys.argv[1:2] or ["logs"])).round(1).to_string())
