"""How much of a network can be removed: layers that go alone, coupled groups, and Torch-Pruning's magnitude pruner.

Each keeps 30 % of the channels of all that it can prune (by the L1 norm, the same share of every layer) and its MACs are
counted by one counter. Every cut of ours is compared with the original without these channels (law 8).
"""

import argparse
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Row, parse, say, write_table
from benchmarks.networks import example_for, made
from scap.criterion.score import score_network
from scap.criterion.settings import CriterionSettings
from scap.errors import ScapError
from scap.pruning.copies import undisturbed
from scap.pruning.counting import count_operations
from scap.pruning.cutting.trials import Surgery
from scap.pruning.plans import Plan, layer_scores
from scap.pruning.surgery import coupled_groups, cut_network, prunable_layers

KEPT, FEWER = 0.3, 0.2
SIZE = 64  # side of the images: small, so that the table is made in minutes
L1 = CriterionSettings(terms={"l1": 1})
NETWORKS = {
    "torchvision": (
        "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "mobilenet_v2",
        "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    ),
    "timm": ("repvgg_a0",),
}  # fmt: skip


def measured(source: str, name: str) -> Row:
    """One row of the table."""
    network, example = made(source, name).eval(), example_for(name, SIZE)
    macs = count_operations(network, example)["macs"]
    row: Row = {"source": source, "network": name, "image": SIZE, "million MACs": macs / 1e6}

    def removed(pruned: nn.Module) -> float:
        return 100 * (1 - count_operations(pruned, example)["macs"] / macs)

    start = time.process_time()
    alone = {layer: np.arange(network.get_submodule(layer).out_channels) for layer in prunable_layers(network, example)}
    row["layers alone"] = len(alone)
    row["alone, MACs removed %"] = removed(cut_network(network, plan_of(network, example, alone, False), example))
    middle = time.process_time()
    groups = {name: members[name] for name, members in coupled_groups(network, example).items()}
    plan = plan_of(network, example, groups, True)
    row["groups"] = len(groups)
    row["coupled, MACs removed %"] = removed(cut_network(network, plan, example, coupled=True))
    row |= {"alone s": middle - start, "coupled s": time.process_time() - middle, "law 8": difference(network, plan, example)}
    fewer = plan_of(network, example, groups, True, FEWER)
    row["coupled, 20 % kept"] = removed(cut_network(network, fewer, example, coupled=True))
    seconds, pruned = timed(lambda: magnitude_pruned(network, example))
    return row | {"Torch-Pruning, MACs removed %": removed(pruned), "Torch-Pruning s": seconds}


def plan_of(network: nn.Module, example: Tensor, groups: dict[str, Any], coupled: bool, share: float = KEPT) -> Plan:
    """The best of what goes at once in each group, a share of it; `groups`: name -> what each channel belongs to."""
    if not groups:
        return {}
    scores = layer_scores(score_network(network, example, layers=list(groups), coupled=coupled, criterion=L1))
    plan = {}
    for layer, units in groups.items():
        by_unit = np.zeros(units.max() + 1)
        by_unit[units] = scores[layer]  # all channels of a unit have one score
        best = np.argsort(-by_unit, kind="stable")[: max(1, round(share * len(by_unit)))]
        plan[layer] = np.flatnonzero(np.isin(units, best)).tolist()
    return plan


def difference(network: nn.Module, plan: Plan, example: Tensor) -> float:
    """Law 8's largest relative difference for a plan; an error where it does not hold."""
    with undisturbed(network):
        outcome = Surgery(network, example, coupled=True).check(plan)
    if outcome.reason is not None:
        raise ScapError(outcome.reason)
    return outcome.difference


def magnitude_pruned(network: nn.Module, example: Tensor) -> nn.Module:
    """By Torch-Pruning: 70 % of the channels of every layer but the last ones."""
    import torch_pruning

    heads = [module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=1 - KEPT,
            ignored_layers=heads,
        )
        pruner.step()
    return network


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds (other work may run beside), and what came out."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def main(options: argparse.Namespace) -> None:
    """Make the table, network by network; it is written again after each."""
    torch.set_num_threads(options.threads or 1)
    rows: list[Row] = []
    note = "30 % of the channels kept (by L1 norm, in groups of grouped convolutions whole groups), one counter, processor time"
    for source, names in NETWORKS.items():
        for name in names if not options.quick else names[:1]:
            rows.append(measured(source, name))
            say(str(rows[-1]))
            write_table("coverage", rows, options, note)
            gc.collect()


if __name__ == "__main__":
    main(parse(__doc__))
