"""Gather the metrics of a comparison's runs into one table. Imports no torch."""

import json
from pathlib import Path

import pandas as pd
from job import job
from table import write_table


def row(run: dict, metrics_path: str, baseline_path: str, history_path: str | None) -> dict:
    metrics, baseline = (json.loads(Path(path).read_text()) for path in (metrics_path, baseline_path))
    before, pruned = baseline["baseline"], metrics["pruned"]
    after = metrics.get("finetuned", pruned)
    history = pd.read_csv(history_path) if history_path else pd.DataFrame({"seconds": []})
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
        "device": metrics.get("device", baseline["device"]),
        "torch": metrics.get("torch", baseline["torch"]),
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
