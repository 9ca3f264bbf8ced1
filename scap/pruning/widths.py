"""How many channels each layer keeps: by a budget, or the same share of every layer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from scap.checks import check_number
from scap.errors import ScapError
from scap.models.inputs import Example
from scap.models.layers import weighted_layers
from scap.pruning.plans import Plan, layer_scores, plan_at
from scap.pruning.sizes import Sizes

if TYPE_CHECKING:
    import pandas as pd


def plan_for(
    table: "pd.DataFrame",
    network: nn.Module,
    example: Example,
    *,
    macs: float | None = None,
    params: float | None = None,
    multiple: int = 1,
    min_channels: int = 1,
) -> Plan:
    """The channels of a score table that a budget leaves room for: the plan at the lowest threshold that meets it.

    Args:
        table: Score table of `score_network`.
        network: The network that was scored.
        example: An input of it, (N, channels, H, W).
        macs: Share of the multiply-accumulate operations that may be left, in (0, 1].
        params: Share of the parameters that may be left, in (0, 1]; both hold where both are given.
        multiple: Numbers of channels are rounded up to a multiple of this.
        min_channels: A layer keeps so many channels at least, or all that it has.

    Returns:
        Layer -> the output channels that it keeps, increasing.

    Raises:
        ScapError: Where no budget is given, and where no threshold meets it, with what the smallest plan leaves.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> criterion = scap.CriterionSettings(terms={"l1": 1})
        >>> table = scap.score_network(network, torch.rand(1, 3, 8, 8), criterion=criterion)
        >>> [len(kept) for kept in scap.plan_for(table, network, torch.rand(1, 3, 8, 8), macs=0.5).values()]
        [4]
    """
    sizes, budgets = Sizes(network, example), _budgets(macs, params)
    meets = sizes.meets(budgets)
    thresholds = np.unique(np.concatenate(list(layer_scores(table).values()))).clip(0, 1)

    def plan(index: int) -> Plan:
        return plan_at(table, float(thresholds[index]), multiple, min_channels=min_channels)

    smallest = plan(len(thresholds) - 1)
    if not meets(smallest):
        _refuse(sizes, smallest, budgets)
    return plan(_first(lambda index: meets(plan(index)), len(thresholds)))


def uniform_widths(
    network: nn.Module,
    layers: Sequence[str],
    example: Example,
    *,
    macs: float | None = None,
    params: float | None = None,
    multiple: int = 1,
    min_channels: int = 1,
) -> dict[str, int]:
    """Channels per layer (or group) when all keep the same share, the largest that meets the budgets (shares left, in (0, 1]).

    Widths are rounded down to a `multiple`, at least one of it and at least `min_channels`, at most the whole layer.
    Raises ScapError where the smallest widths do not meet the budgets.
    """
    sizes, budgets = Sizes(network, example), _budgets(macs, params)
    meets, modules = sizes.meets(budgets), weighted_layers(network)
    totals = {layer: len(modules[layer].weight) for layer in layers}
    floor = -(-max(multiple, min_channels) // multiple) * multiple
    steps = sorted({count / total for total in totals.values() for count in range(1, total + 1)}, reverse=True)

    def plan(index: int) -> Plan:
        # A thousandth of a channel: shares such as 7 / 10 of 10 channels are 7, whatever the rounding says.
        widths = {layer: int(steps[index] * total + 1e-3) // multiple * multiple for layer, total in totals.items()}
        widths = widths if index else totals
        return {layer: list(range(min(totals[layer], max(floor, width)))) for layer, width in widths.items()}

    smallest = plan(len(steps) - 1)
    if not meets(smallest):
        _refuse(sizes, smallest, budgets)
    chosen = plan(_first(lambda index: meets(plan(index)), len(steps)))
    return {layer: len(kept) for layer, kept in chosen.items()}


def _budgets(macs: float | None, params: float | None) -> dict[str, float]:
    budgets = {key: share for key, share in {"macs": macs, "params": params}.items() if share is not None}
    if not budgets:
        raise ScapError("no budget is given; say macs= or params=, the share that is left")
    for key, share in budgets.items():
        check_number(share, key, 0, 1)
    return budgets


def _refuse(sizes: Sizes, smallest: Plan, budgets: dict[str, float]) -> None:
    after = sizes.of(smallest)
    least = ", ".join(f"{after[key] / sizes.full[key]:.4f} of the {key}" for key in budgets)
    raise ScapError(f"the budget cannot be met: the smallest plan leaves {least}; raise it, or prune more layers")


def _first(fits: Callable[[int], bool], count: int) -> int:
    """The first index below `count` that fits, where all after it fit too and the last one does."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
