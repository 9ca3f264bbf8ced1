"""Measure networks: top-1 on held-out and test images, MACs, parameters. The only step that uses the test images."""

import json
from pathlib import Path

import torch
from dataset import open_dataset
from device import pick_device
from job import job

from scap.pruning.counting import count_operations
from scap.pruning.files import load_network, read_metadata
from scap.training.loop import evaluate


def measure(models: dict[str, str], data: str, cfg: dict, output: str, device: str) -> None:
    dataset = open_dataset(data, cfg["architecture"])
    metrics: dict[str, object] = {}
    for name, path in models.items():
        network, metadata = load_network(path), read_metadata(path)
        counts = count_operations(network, torch.zeros(metadata["example_shape"]))
        images = {"top1": dataset.test, "holdout_top1": dataset.holdout}
        top1 = {key: evaluate(network.to(device), part, dataset.mean, dataset.std, device) for key, part in images.items()}
        metrics[name] = {key: value for key, value in top1.items() if value == value} | counts
        if not metadata["plan"]:  # unpruned: what builds it, so that the size of any plan can be counted without weights
            metrics["network"] = {key: metadata[key] for key in ("architecture", "arguments", "example_shape")}
        metrics |= metadata["extra"]  # device and PyTorch of the last training
    Path(output).write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    with job(snakemake):
        models = {name: path for name, path in snakemake.input.items() if name != "data"}
        measure(models, snakemake.input.data, snakemake.params.cfg, snakemake.output[0], pick_device(snakemake))
