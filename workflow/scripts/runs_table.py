"""Gather the metrics of a comparison's runs into one table. Imports no torch."""

from job import job
from metrics import read_metrics
from table import write_table

from scap.errors import DamagedFile
from scap.reading import read_history


def row(run: dict, metrics_path: str, baseline_path: str, history_path: str) -> dict:
    before = read_metrics(baseline_path, {key: run[key] for key in ("network", "seed")}, ("baseline",))["baseline"]
    metrics = read_metrics(metrics_path, run, ("pruned", "finetuned"))
    pruned, tuned = metrics["pruned"], metrics["finetuned"]
    for key in ("macs", "params"):
        if not 0 < tuned[key] == pruned[key] <= before[key]:
            problem = f"{key} are {pruned[key]} when pruned, {tuned[key]} when fine-tuned, but {before[key]} of the baseline"
            raise DamagedFile(metrics_path, problem)
    history = read_history(history_path, "seconds")
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
