"""How many channels each layer keeps: by a budget, or the same share of every layer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from scap.checks import check_number
from scap.errors import ScapError
from scap.models.layers import conv_layers
from scap.pruning.counting import count_operations
from scap.pruning.plans import Plan, layer_scores, plan_at
from scap.pruning.surgery import prune_network

if TYPE_CHECKING:
    import pandas as pd


def plan_for(
    table: "pd.DataFrame",
    network: nn.Module,
    example: Tensor,
    *,
    macs: float | None = None,
    params: float | None = None,
    multiple: int = 1,
    min_channels: int = 1,
) -> Plan:
    """The channels of a score table that a budget leaves room for: the plan at the lowest threshold that meets it.

    `macs`, `params`: the shares that may be left, in (0, 1]; both hold where both are given. Raises ScapError where no
    threshold meets the budget, with what the smallest plan reaches.
    """
    budgets = {key: share for key, share in {"macs": macs, "params": params}.items() if share is not None}
    if not budgets:
        raise ScapError("plan_for: no budget is given; say macs= or params=, the share that is left")
    for key, share in budgets.items():
        check_number(share, key, 0, 1)
    before = count_operations(network, example)
    thresholds = np.unique(np.concatenate(list(layer_scores(table).values()))).clip(0, 1)

    def plan(index: int) -> Plan:
        return plan_at(table, float(thresholds[index]), multiple, min_channels=min_channels)

    def left(index: int) -> dict[str, float]:
        after = count_operations(prune_network(network, plan(index), example), example)
        return {key: after[key] / before[key] for key in budgets}

    def fits(index: int) -> bool:
        return all(left(index)[key] <= share for key, share in budgets.items())

    if not fits(len(thresholds) - 1):
        least = ", ".join(f"{key} {value:.4f}" for key, value in left(len(thresholds) - 1).items())
        raise ScapError(f"plan_for: the smallest plan of these scores leaves {least} of the network; raise the budget")
    return plan(_first(fits, len(thresholds)))


def _first(fits: Callable[[int], bool], count: int) -> int:
    """The first index below `count` that fits, where all after it fit too and the last one does."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def uniform_widths(network: nn.Module, plan: Plan, example: Tensor, multiple: int = 1, min_channels: int = 1) -> dict[str, int]:
    """Channels per layer of `plan` when all keep the same share: the largest that needs no more MACs than the plan.

    Widths are rounded down to a `multiple`, at least one of it and at least `min_channels`, at most the whole layer.
    """
    budget = count_operations(prune_network(network, plan, example), example)["macs"]
    totals = {layer: conv.out_channels for layer, conv in conv_layers(network).items() if layer in plan}
    if all(len(kept) == totals[layer] for layer, kept in plan.items()):
        return totals
    floor = -(-max(multiple, min_channels) // multiple) * multiple

    def widths(share: float) -> dict[str, int]:
        rounded = {layer: int(share * total) // multiple * multiple for layer, total in totals.items()}
        return {layer: min(total, max(floor, rounded[layer])) for layer, total in totals.items()}

    low, high = 0.0, 1.0
    for _ in range(10):  # to a thousandth of the width
        middle = (low + high) / 2
        trial = prune_network(network, {layer: list(range(n)) for layer, n in widths(middle).items()}, example)
        low, high = (middle, high) if count_operations(trial, example)["macs"] <= budget else (low, middle)
    return widths(low)
