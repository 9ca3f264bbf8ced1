"""Prune groups of layers, or a network that rounds before have pruned: the file holds one plan from the unpruned network."""

from typing import Any

import torch
from channels import read_scores
from dataset import calibration_images, open_dataset
from job import Report, job
from networks import open_pruned, open_unpruned
from plans import make_plan
from table import write_table
from torch import Tensor, nn

from scap.models.layers import weighted_layers
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.counting import count_operations
from scap.pruning.files import save_network
from scap.pruning.history import applied


def prune(inputs: dict, cfg: dict, seed: int, model: str, channels: str, compensation: str, report: Report) -> None:
    """`inputs`: baseline, scores; the network that the round before left, width_scores and data where they are needed."""
    whole, metadata = open_unpruned(inputs["baseline"], cfg["architecture"])
    network = whole if cfg["round"] == 1 else open_pruned(inputs["network"], cfg["architecture"])[0]
    example = torch.zeros(metadata["example_shape"])
    own = read_scores(inputs["scores"])
    widths_of = next(map(read_scores, inputs.get("width_scores", [])), None)
    plan = make_plan(network, example, own, widths_of, in_this_round(whole, network, example, cfg))
    images, how, ridge = example, cfg["compensation"]["how"], cfg["compensation"]["ridge"]
    if how != "none":
        dataset = open_dataset(inputs["data"], cfg["architecture"])
        images, _ = calibration_images(dataset, cfg["compensation"]["images"], seed, "cpu")
    pruned, done = prune_and_compensate(network, plan, images, how=how, ridge=ridge, coupled=cfg["coupled"], report=report)
    kept = {key: metadata[key] for key in ("architecture", "arguments", "example_shape")}
    save_network(model, pruned, **kept)
    before = {layer: len(module.weight) for layer, module in weighted_layers(whole).items()}
    rows = [{"layer": layer, "before": before[layer], "after": len(stay)} for layer, stay in (applied(pruned) or {}).items()]
    write_table(channels, rows)
    write_table(compensation, done)


def in_this_round(whole: nn.Module, network: nn.Module, example: Tensor, cfg: dict) -> dict[str, Any]:
    """The plan's settings, with the share of `network` that a budget leaves it so that every round removes as large a part."""
    settings = dict(cfg["plan"])
    if cfg["rounds"] > 1:
        full, now = count_operations(whole, example), count_operations(network, example)
        for key in ("macs", "params"):
            if key in settings:
                settings[key] = min(1.0, settings[key] ** (cfg["round"] / cfg["rounds"]) * full[key] / now[key])
    return settings


if __name__ == "__main__":
    with job(snakemake) as report:
        torch.set_num_threads(snakemake.threads)
        inputs = dict(snakemake.input.items())
        prune(inputs, snakemake.params.cfg, int(snakemake.wildcards.seed), *snakemake.output, report)
