"""What is printed when a run ends: the result tables as text, where the rest is, what to type next; or what failed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow.display import Display
from workflow.figures import TABLES
from workflow.lineage import figure_path, table_path

MOST_ROWS = 20
ALL = "all"  # the target of a command that names none
AXES = ("network", "seed", "criterion", "widths", "size", "compensation", "schedule")
MEASURES = {  # column -> its name here, and how it is written
    "macs_removed": ("FLOPs removed", "{:.2%}"),
    "params_removed": ("parameters removed", "{:.2%}"),
    "top1_pruned": ("top-1 pruned", "{:.2f} %"),
    "top1": ("top-1", "{:.2f} %"),
    "distance_to_published": ("from published", "{:.1f}"),
    "rank_correlation_first": ("ranking, first", "{:.2f}"),
    "rank_correlation_l1": ("ranking, L1", "{:.2f}"),
}


def table_text(path: Path) -> str:
    """A table of runs as text: what tells its rows apart, and what was measured."""
    table = pd.read_csv(path)
    axes = [name for name in AXES if name in table and (table[name].nunique() > 1 or name == "criterion")]
    shown = table[axes].astype(str)
    for column, (name, form) in MEASURES.items():
        if column in table:
            shown[name] = table[column].map(form.format)
    text = shown.head(MOST_ROWS).to_string(index=False)
    more = len(table) - MOST_ROWS
    return f"{text}\n… and {more} more rows: {path}" if more > 0 else text


def about(table: Path) -> str:
    """What the rows of a table of runs have in common."""
    values = pd.read_csv(table)
    same = [f"{name} {values[name].iloc[0]}" for name in AXES if name in values and values[name].nunique() == 1]
    baseline = values["top1_baseline"].unique() if "top1_baseline" in values else []
    return ", ".join([*same, *(f"baseline {top1:.2f} %" for top1 in baseline if len(baseline) == 1)])


def closing(config: Mapping[str, Any], targets: Iterable[str]) -> str:
    """What a run has made: of its targets that are comparisons the tables, else its files."""
    names = list(targets) or [ALL]
    comparisons = [each for name in names for each in config["targets"].get(name, _comparison(config, name))]
    parts = [part for comparison in dict.fromkeys(comparisons) for part in _comparison_text(config, comparison)]
    files = [name for name in names if Path(name).is_file()]
    if files:
        parts.append("Made: " + "\n      ".join([*files[:5], *([f"… and {len(files) - 5} more"] if len(files) > 5 else [])]))
    return "\n".join(["", *parts, *_next(config, names)])


def _comparison(config: Mapping[str, Any], path: str) -> list[str]:
    """The comparison that a table or a figure belongs to."""
    tables = {table_path(name, table): [name] for name in config["comparisons"] for table in TABLES}
    figures = {name: [name] for name in config["comparisons"] if path.startswith(f"results/figures/{name}/")}
    return tables.get(path) or figures.get(Path(path).parent.name, [])


def _comparison_text(config: Mapping[str, Any], comparison: str) -> list[str]:
    entry, parts = config["comparisons"][comparison], []
    for table in entry["tables"]:
        path = Path(table_path(comparison, table))
        if table != "method" and path.is_file():
            parts += [f"{path}: {about(path)}", table_text(path), ""]
    figures = [name for name in entry["figures"] if Path(figure_path(comparison, name, "png")).is_file()]
    if figures:
        parts.append(f"Figures: {Path(figure_path(comparison, figures[0], 'png')).parent}/ ({', '.join(figures)}; PNG and PDF)")
    return parts


def _next(config: Mapping[str, Any], names: list[str]) -> list[str]:
    """Two commands that may come next."""
    known = [name for name in names if name in config["targets"]]
    target = f" -- {' '.join(known)}" if known and known != [ALL] else ""
    others = [name for name in ("token", *config["targets"]) if name in config["targets"] and name not in (*names, ALL)]
    commands = [f"snakemake --report report.html{target}    # one page: tables, figures, settings, run times"]
    if others:
        commands.append(f"snakemake --cores all -n {others[0]}    # what another target would run; without -n it runs")
    else:
        commands.append("python -m workflow.costs    # what each step has cost")
    return ["Next:", *(f"  {command}" for command in commands)]


def failures(display: Display) -> str:
    """What did not work, a line a job, after all that could be made was made."""
    run = display.run
    lines = [f"  {job}: {job.message()}\n    log: {', '.join(job.logs) or 'none'}" for job in run.failed.values()]
    if not lines:
        return ""
    kept = f"{run.progress()}; what is done is kept"
    return "\n".join(["", f"{len(lines)} failed; {kept}. Mend what is named and run the same command again:", *lines])
