"""Gather the metrics of a comparison's runs into one table. Imports no torch."""

import pandas as pd
from job import job
from metrics import read_metrics
from table import write_table

from scap.errors import DamagedFile
from scap.reading import read_history

ELSEWHERE = "trained elsewhere"  # a checkpoint, or weights that came with the network, and no training after it


def row(run: dict, metrics_path: str, baseline_path: str, history_path: str | None) -> dict:
    models = ("pruned", "finetuned") if history_path else ("pruned",)
    baseline = read_metrics(baseline_path, {key: run[key] for key in ("network", "seed")}, ("baseline",))
    metrics = read_metrics(metrics_path, run, models)
    before, pruned, after = baseline["baseline"], metrics["pruned"], metrics[models[-1]]
    for key in ("macs", "params"):
        if not 0 < after[key] == pruned[key] <= before[key]:
            problem = f"{key} are {before[key]} of the baseline, {pruned[key]} pruned and {after[key]} in the end"
            raise DamagedFile(metrics_path, problem)
    history = read_history(history_path, "seconds") if history_path else pd.DataFrame({"seconds": []})
    kind, _, value = run["size"].partition("-")
    return {
        **run,
        "threshold": float(value) if kind == "threshold" else float("nan"),
        "top1_baseline": before["top1"],
        "top1_pruned": pruned["top1"],
        "top1": after["top1"],
        "holdout_top1": after.get("holdout_top1", float("nan")),
        "macs_baseline": before["macs"],
        "macs": after["macs"],
        "macs_removed": 1 - after["macs"] / before["macs"],
        "params_baseline": before["params"],
        "params": after["params"],
        "params_removed": 1 - after["params"] / before["params"],
        "finetune_epochs": len(history),
        "finetune_seconds": history["seconds"].sum(),
        **{key: metrics.get(key, baseline.get(key, ELSEWHERE)) for key in ("device", "torch")},
    }


def rows(runs: list[dict], metrics: list[str], baselines: list[str], histories: list[str]) -> list[dict]:
    """One row a run; those of the schedule `none` have no history."""
    trained = iter(histories)
    paths = (next(trained) if run["schedule"] != "none" else None for run in runs)
    return [row(*each) for each in zip(runs, metrics, baselines, paths, strict=True)]


if __name__ == "__main__":
    with job(snakemake):
        inputs = snakemake.input
        table = rows(snakemake.params.cfg["runs"], list(inputs.metrics), list(inputs.baselines), list(inputs.histories))
        write_table(snakemake.output[0], table)
