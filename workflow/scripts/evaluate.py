"""Measure networks: top-1 on held-out and test images, MACs, parameters. The only step that uses the test images."""

from typing import Any

import torch
from dataset import open_dataset
from device import pick_device
from job import job
from networks import open_pruned, open_unpruned

from scap.data.datasets import Dataset
from scap.errors import DamagedFile
from scap.pruning.counting import count_operations
from scap.training.loop import evaluate
from scap.writing import write_json


def measure(models: dict[str, str], data: str, cfg: dict, run: dict[str, str], output: str, device: str) -> None:
    """`run`: the wildcards, kept with the numbers so that whoever reads them knows whose they are."""
    dataset, plans = open_dataset(data, cfg["architecture"]), []
    metrics: dict[str, object] = {"run": run}
    for name, path in models.items():
        network, metadata = (open_unpruned if name == "baseline" else open_pruned)(path, cfg["architecture"])
        check_fits(path, metadata, dataset)
        plans.append(metadata["plan"])
        counts = count_operations(network, torch.zeros(metadata["example_shape"]))
        images = {"top1": dataset.test, "holdout_top1": dataset.holdout}
        top1 = {key: evaluate(network.to(device), part, dataset.mean, dataset.std, device) for key, part in images.items()}
        metrics[name] = {key: value for key, value in top1.items() if value == value} | counts
        if not metadata["plan"]:  # unpruned: what builds it, so that the size of any plan can be counted without weights
            metrics["network"] = {key: metadata[key] for key in ("architecture", "arguments", "example_shape")}
        metrics |= metadata["extra"]  # device and PyTorch of the last training
    if plans[0] != plans[-1]:
        raise DamagedFile(path, f"keeps other channels than {models['pruned']}, from which it was trained")
    write_json(output, metrics)


def check_fits(path: str, metadata: dict[str, Any], dataset: Dataset) -> None:
    """DamagedFile where the network is for images of another shape or number of classes."""
    shape, found = list(dataset.test.shape), metadata["example_shape"][1:]
    classes = metadata["arguments"].get("classes", dataset.classes)
    if (found, classes) != (shape, dataset.classes):
        problem = f"is for images {found} of {classes} classes, not {shape} of {dataset.classes} classes"
        raise DamagedFile(path, problem)


if __name__ == "__main__":
    with job(snakemake):
        models = {name: path for name, path in snakemake.input.items() if name != "data"}
        run = dict(snakemake.wildcards.items())
        measure(models, snakemake.input.data, snakemake.params.cfg, run, snakemake.output[0], pick_device(snakemake))
