"""Gather the metrics of a comparison's runs into one table. Imports no torch."""

import json
from pathlib import Path

import pandas as pd
from job import job
from table import write_table


def row(run: dict, metrics_path: str, baseline_path: str, history_path: str) -> dict:
    metrics, baseline = (json.loads(Path(path).read_text()) for path in (metrics_path, baseline_path))
    before, pruned, tuned = baseline["baseline"], metrics["pruned"], metrics["finetuned"]
    history = pd.read_csv(history_path)
    return {
        **run,
        "top1_baseline": before["top1"],
        "top1_pruned": pruned["top1"],
        "top1": tuned["top1"],
        "holdout_top1": history["holdout_top1"].iloc[-1],
        "macs_baseline": before["macs"],
        "macs": tuned["macs"],
        "macs_removed": 1 - tuned["macs"] / before["macs"],
        "params_baseline": before["params"],
        "params": tuned["params"],
        "params_removed": 1 - tuned["params"] / before["params"],
        "finetune_epochs": len(history),
        "finetune_seconds": history["seconds"].sum(),
        "device": metrics["device"],
        "torch": metrics["torch"],
    }


if __name__ == "__main__":
    with job(snakemake):
        inputs = snakemake.input
        files = zip(snakemake.params.cfg, inputs.metrics, inputs.baselines, inputs.histories, strict=True)
        write_table(snakemake.output[0], [row(*each) for each in files])
