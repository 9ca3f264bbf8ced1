"""Tables of results in Markdown: the parts of the documents that hold measured numbers (workflow/documents.py)."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scap.errors import ScapError
from workflow.manual import ROOT, markdown

FOLDERS = {"": "results/tables", "benchmarks": "benchmarks/results"}
AXES = ("network", "criterion", "widths", "size", "compensation", "schedule")
PAIRED = ["network", "seed"]  # runs are compared within a network and a seed
TITLES = {"threshold": "τ", "holdout_top1": "held-out top-1"}


@dataclass(frozen=True)
class Measure:
    """A column of a table of runs, its title, and how the values of several seeds are shown."""

    column: str
    title: str
    show: Callable[[pd.Series], str]


def share(values: pd.Series) -> str:
    return f"{100 * values.mean():.2f} %"


def spread(values: pd.Series) -> str:
    return f"{values.mean():.2f}{f' ± {values.std():.2f}' if len(values) > 1 else ''} %"


def extent(values: pd.Series) -> str:
    several = f" ({values.min():.1f} to {values.max():.1f})" if len(values) > 1 else ""
    return f"{values.mean():.1f}{several}".replace("-", "−")


def plain(values: pd.Series) -> str:
    return f"{values.mean():.2f}".replace("-", "−")


MEASURES = {
    "flops": Measure("macs_removed", "FLOPs removed", share),
    "params": Measure("params_removed", "parameters removed", share),
    "baseline": Measure("top1_baseline", "baseline", spread),
    "before": Measure("top1_pruned", "top-1, not trained", spread),
    "holdout": Measure("holdout_top1", "held-out top-1", spread),
    "top1": Measure("top1", "top-1", spread),
    "distance": Measure("distance_to_published", "distance, points", extent),
    "default": Measure("rank_correlation_first", "ranking, first", plain),
    "l1": Measure("rank_correlation_l1", "ranking, L1", plain),
}


# Tables


def read(name: str) -> pd.DataFrame:
    """A table by its name, as FOLDERS says: `cifar10`, `benchmarks/growth`."""
    folder, _, stem = name.rpartition("/")
    path = f"{FOLDERS.get(folder, folder)}/{stem}.csv"
    if not (ROOT / path).is_file():
        raise ScapError(f"there is no table {path}; make it, or correct the name")
    return pd.read_csv(ROOT / path)


def chosen(table: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """The rows whose columns hold these values, at least one."""
    for column, text in where.items():
        if column not in table:
            raise ScapError(f"{column!r} is no column of the table; they are {', '.join(table.columns)}")
        table = table[_matches(table[column], text)]
    if table.empty:
        raise ScapError(f"no row of the table has {dict(where)}")
    return table


def _matches(values: pd.Series, text: str) -> pd.Series:
    if ".." in text:
        low, high = text.split("..")
        return values.between(float(low or "-inf"), float(high or "inf"))
    return values.astype(str).isin(text.split(","))


def one_value_a_seed(runs: pd.DataFrame, columns: Sequence[str], what: object) -> pd.DataFrame:
    """The same runs, which a mean over seeds may be taken of; ScapError where one seed has several values of a column."""
    if {*PAIRED} <= {*runs.columns}:
        for column in columns:
            if (runs.groupby(PAIRED)[column].nunique() > 1).any():
                differing = [axis for axis in AXES if axis in runs and runs[axis].nunique() > 1]
                words = f"a seed has several values of {column!r}; choose among runs that differ in {', '.join(differing)}"
                raise ScapError(f"{what}: {words}")
    return runs


def as_it_is(table: pd.DataFrame) -> str:
    """All rows and columns of a table in Markdown."""
    body = [[cell(part) for part in row] for row in table.astype(object).to_numpy()]
    return markdown([TITLES.get(name, name) for name in table], body)


def cell(value: object) -> str:
    """A number to three digits, from 1,000 on whole; whole numbers and text as they are."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def groups_of(runs: pd.DataFrame, keys: list[str], order: str) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The runs by `keys`, in the order of the table, or by the mean of a column (`-column`: the largest first)."""
    groups = list(runs.groupby(keys, sort=False))
    if order:
        groups.sort(key=lambda entry: entry[1][order.removeprefix("-")].mean(), reverse=order.startswith("-"))
    return groups


# Renderers


def summary(name: str, *, by: str = "criterion", show: str = "flops,params,top1", order: str = "", **where: str) -> str:
    """Runs by their `by`: means over seeds of what is to `show`."""
    runs, keys = chosen(read(name), where), by.split(",")
    measures = [MEASURES[name] for name in show.split(",")]
    columns = [each.column for each in measures]
    body = []
    for point, group in groups_of(runs, keys, order):
        line = [f"`{part}`" if isinstance(part, str) else f"{part:g}" for part in point]
        group = one_value_a_seed(group, columns, point)
        body.append(line + [each.show(group[each.column]) for each in measures])
    return markdown([TITLES.get(key, key) for key in keys] + [each.title for each in measures], body)


def seeds(name: str, *, by: str = "criterion", of: str = "holdout", also: str = "top1", **where: str) -> str:
    """Runs by one key with a column a seed, the best mean first."""
    runs, first, second = chosen(read(name), where), MEASURES[of], MEASURES[also]
    for point, group in runs.groupby(by):
        one_value_a_seed(group, [first.column, second.column], point)
    wide = runs.pivot_table(index=by, columns="seed", values=first.column).assign(mean=lambda table: table.mean(axis=1))
    wide = wide.assign(other=runs.groupby(by)[second.column].mean()).sort_values("mean", ascending=False)
    head = [by, *(f"seed {seed}" for seed in wide.columns[:-2])]
    body = [[f"`{name}`", *(f"{value:.2f}" for value in row)] for name, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return markdown([*head, f"{first.title}, mean", f"{second.title}, mean"], body)


def value(name: str, column: str, how: str = "mean", *, form: str = ".2f", unit: str = "", **where: str) -> str:
    """One number: a statistic (mean, min, max, std, count, sum) of a column."""
    rows = chosen(read(name), where)
    if how in ("mean", "std"):
        one_value_a_seed(rows, [column], where)
    found = format(getattr(rows[column], how)(), form)
    return f"{found} {unit}".strip().replace("-", "−")


def change(name: str, column: str, how: str = "mean", *, against: str, form: str = "+.2f", **where: str) -> str:
    """One number: the change of a column against the runs that `against` names, of the same network and seed."""
    runs, others = read(name), dict(word.split("=", 1) for word in against.split())
    both = chosen(runs, where).merge(chosen(runs, others), on=PAIRED, suffixes=("", "_other"), validate="one_to_one")
    found = getattr(both[column] - both[f"{column}_other"], how)()
    return format(found, form).replace("-", "−")


def benchmark(name: str, *, columns: str = "", **where: str) -> str:
    """A table of benchmarks/results, with its note and the machine below."""
    table = chosen(read(f"benchmarks/{name}"), where)
    return with_machine(table[[*columns.split(","), "note", "machine"]] if columns else table)


def with_machine(table: pd.DataFrame) -> str:
    """A table of a benchmark, with its last two columns, note and machine, below."""
    note, machine = table["note"].iloc[0], table["machine"].iloc[0]
    said = f"{note}. " if isinstance(note, str) else ""  # an empty note is read as NaN
    return f"{as_it_is(table.drop(columns=['note', 'machine']))}\n\n{said}Machine: {machine}."


def overview() -> str:
    """The published tables of runs, those that are in git: what they hold, where and in what time they were made."""
    head = ["table", "networks", "runs", "seeds", "device", "torch", "fine-tuning, h"]
    body = [[f"`{path}`", *_facts(runs)] for path, runs in tracked().items()]
    return markdown(head, body) if body else "None yet."


def published() -> str:
    """Every table of runs that is in git under results/tables: the command that makes it, and what it says by point."""
    parts = []
    for path, runs in tracked().items():
        axes = [axis for axis in AXES if axis == "criterion" or runs[axis].nunique() > 1]
        show = "flops,params,holdout,top1" if runs["holdout_top1"].notna().all() else "flops,params,top1"
        text = summary(Path(path).stem, by=",".join(axes), show=show)
        parts.append(f"### {Path(path).stem}\n\n    snakemake --cores all {path}\n\n{text}")
    return "\n\n".join(parts) or "None yet."


def tracked() -> dict[str, pd.DataFrame]:
    """The tables of runs that are in git, by path."""
    listed = subprocess.run(["git", "ls-files", FOLDERS[""]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tables = {path: pd.read_csv(ROOT / path) for path in listed.split() if path.endswith(".csv")}
    return {path: table for path, table in tables.items() if "finetune_seconds" in table}


def _facts(runs: pd.DataFrame) -> list[str]:
    named = [", ".join(runs[column].astype(str).unique()) for column in ("network", "seed", "device", "torch")]
    return [named[0], str(len(runs)), *named[1:], f"{runs['finetune_seconds'].sum() / 3600:.1f}"]


TABLES = (summary, seeds, value, change, benchmark, overview, published)
