"""Prune groups of layers, or a network that rounds before have pruned: the file holds one plan from the unpruned network."""

from typing import Any

import pandas as pd
import torch
from channels import read_scores
from dataset import calibration_images, open_dataset
from job import Report, job
from networks import open_pruned, open_unpruned
from table import write_table
from torch import Tensor, nn

from scap.models.layers import weighted_layers
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.counting import count_operations
from scap.pruning.files import save_network
from scap.pruning.history import applied
from scap.pruning.plans import Plan, plan_at, plan_of_widths
from scap.pruning.sizes import Sizes
from scap.pruning.widths import plan_for, uniform_widths


def prune(inputs: dict, cfg: dict, seed: int, model: str, channels: str, compensation: str, report: Report) -> None:
    """`inputs`: baseline, scores; the network that the round before left, width_scores and data where they are needed."""
    whole, metadata = open_unpruned(inputs["baseline"], cfg["architecture"])
    network = whole if cfg["round"] == 1 else open_pruned(inputs["network"], cfg["architecture"])[0]
    example = torch.zeros(metadata["example_shape"])
    tables = [read_scores(path) for path in (inputs["scores"], *inputs.get("width_scores", []))]
    plan = make_plan(network, example, tables, in_this_round(whole, network, example, cfg))
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


def make_plan(network: nn.Module, example: Tensor, tables: list[pd.DataFrame], settings: dict[str, Any]) -> Plan:
    """By a network's own scores, the first table; as many channels per layer as the second keeps; or the same share of all."""
    own, decide = tables[0], tables[-1]
    rounding = {key: settings.pop(key) for key in ("multiple", "min_channels")}
    uniform, threshold = settings.pop("uniform"), settings.pop("threshold", None)
    layers = list(own["layer"].unique())
    if uniform:
        budget = settings if threshold is None else share_of(network, example, plan_at(decide, threshold, **rounding))
        return plan_of_widths(own, uniform_widths(network, layers, example, **budget, **rounding), **rounding)
    if threshold is None:
        plan: Plan = plan_for(decide, network, example, **settings, **rounding)
    else:
        plan = plan_at(decide, threshold, **rounding)
    return plan if decide is own else plan_of_widths(own, {layer: len(kept) for layer, kept in plan.items()}, **rounding)


def share_of(network: nn.Module, example: Tensor, plan: Plan) -> dict[str, float]:
    """The share of the MACs that a plan leaves."""
    sizes = Sizes(network, example)
    return {"macs": sizes.of(plan)["macs"] / sizes.full["macs"]}


if __name__ == "__main__":
    with job(snakemake) as report:
        torch.set_num_threads(snakemake.threads)
        inputs = dict(snakemake.input.items())
        prune(inputs, snakemake.params.cfg, int(snakemake.wildcards.seed), *snakemake.output, report)
