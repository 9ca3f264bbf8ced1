"""How many channels each layer keeps: by a budget, or the same share of every layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from scap.checks import MOST_THREADS, check_number, checked_mapping, checked_names
from scap.errors import ScapError
from scap.models.inputs import Example
from scap.models.layers import not_a_layer, weighted_layers
from scap.pruning.copies import check_network, copied
from scap.pruning.cutting.slices import cut
from scap.pruning.latency import measure_latency
from scap.pruning.plans import Plan, best_channels, layer_scores
from scap.pruning.sizes import Sizes

if TYPE_CHECKING:
    import pandas as pd


class BudgetPlan(dict[str, list[int]]):
    """A plan, and what it was found for: `threshold`, and `reached`, the shares of the whole network that it leaves."""

    threshold: float
    reached: dict[str, float]


def plan_for(
    table: "pd.DataFrame",
    network: nn.Module,
    example: Example,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    multiple: int = 1,
    min_channels: int = 1,
    floors: Mapping[str, int] | None = None,
    ignore: Collection[str] = (),
    threads: int | None = None,
) -> BudgetPlan:
    """The channels of a score table that a budget leaves room for: the plan at the lowest threshold that meets it.

    Where several budgets are given, all hold.

    Args:
        table: Score table of `score_network`.
        network: The network that was scored.
        example: An input of it, (N, channels, H, W).
        macs: Share of the multiply-accumulate operations that may be left, in (0, 1].
        params: Share of the parameters that may be left, in (0, 1].
        latency: Share of the time that the example may take, in (0, 1], as `measure_latency` finds it here, by cutting and
            measuring in a bisection.
        multiple: Numbers of channels are rounded up to a multiple of this, where the layer has as many.
        min_channels: A layer keeps this many channels at least, or all that it has.
        floors: As `min_channels`, for single layers by name.
        ignore: Layers that keep all their channels; they are not in the plan.
        threads: Threads of torch on the CPU while latency is measured; as they are by default.

    Returns:
        Layer -> the output channels that it keeps, increasing: a dict with the attributes `threshold` and `reached`, the
        shares of `macs`, `params` and, where it was measured, `latency` that are left.

    Raises:
        ScapError: Where no budget is given, for layers that the table does not have, and where no threshold meets the
            budget, with what the smallest plan leaves.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> criterion = scap.CriterionSettings(terms={"l1": 1})
        >>> table = scap.score_network(network, torch.rand(1, 3, 8, 8), criterion=criterion)
        >>> plan = scap.plan_for(table, network, torch.rand(1, 3, 8, 8), macs=0.5)
        >>> [len(kept) for kept in plan.values()], plan.reached["macs"]
        ([4], 0.5)
    """
    timed = {} if latency is None else checked_budgets(latency=latency)
    budgets = checked_budgets(macs=macs, params=params) if macs is not None or params is not None or not timed else {}
    check_network(network)
    if threads is not None:
        check_number(threads, "threads", 1, MOST_THREADS, whole=True)
    scores, floors = _chosen(_fitting_scores(table, network), floors, ignore)
    sizes = Sizes(network, example)
    if unread := [layer for layer in scores if layer not in sizes.graph.together]:
        raise ScapError(f"score table: layer {unread[0]!r} is not used when the network runs; leave it out of the table")
    thresholds = np.unique(np.concatenate(list(scores.values()))).clip(0, 1)

    def plan(index: int) -> Plan:
        reaching = {layer: int((values >= thresholds[index]).sum()) for layer, values in scores.items()}
        widths = {layer: max(count, floors.get(layer, 1)) for layer, count in reaching.items()}
        return best_channels(scores, widths, multiple, min_channels)

    last, meets = len(thresholds) - 1, sizes.meets(budgets)
    if not meets(plan(last)):
        _refuse(sizes, plan(last), budgets)
    found = _first(lambda index: meets(plan(index)), len(thresholds))
    reached = {}
    if latency is not None:
        stopwatch = Stopwatch(network, example, sizes, threads)
        if stopwatch.share(plan(found)) > latency:  # asked first, as times are not quite monotonic
            if stopwatch.share(plan(last)) > latency:
                least = f"{stopwatch.share(plan(last)):.2f} of the time, not latency={latency:g}"
                raise ScapError(f"the budget cannot be met: the smallest plan takes {least}; raise it, or prune more layers")
            found += _first(lambda index: stopwatch.share(plan(found + index)) <= latency, len(thresholds) - found)
        reached["latency"] = stopwatch.share(plan(found))
    chosen = BudgetPlan(plan(found))
    chosen.threshold = float(thresholds[found])
    chosen.reached = {key: value / sizes.full[key] for key, value in sizes.of(chosen).items()} | reached
    return chosen


def check_within_reach(
    table: "pd.DataFrame", network: nn.Module, example: Example, budgets: Mapping[str, float], **limits: Any
) -> None:
    """Raise ScapError where a cut to the smallest widths does not meet the budgets of `macs` and `params`.

    `limits` are `multiple`, `min_channels`, `floors` and `ignore`; all as in `plan_for`.
    """
    scores, floors = _chosen(_fitting_scores(table, network), limits.pop("floors", None), limits.pop("ignore", ()))
    sizes, budgets = Sizes(network, example), checked_budgets(**budgets)
    smallest = best_channels(scores, {layer: floors.get(layer, 1) for layer in scores}, **limits)
    if not sizes.meets(budgets)(smallest):
        _refuse(sizes, smallest, budgets)


def _fitting_scores(table: "pd.DataFrame", network: nn.Module) -> dict[str, NDArray[np.float64]]:
    """The scores of a table, which must be one of `network`."""
    known, found = weighted_layers(network), layer_scores(table)
    for layer in found:
        if layer not in known:
            raise ScapError(f"score table: {not_a_layer(network, layer, True)}; make the scores of this network again")
    return layer_scores(table, {layer: len(known[layer].weight) for layer in found})


def _chosen(
    scores: dict[str, NDArray[np.float64]], floors: Mapping[str, int] | None, ignore: Collection[str]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
    """The scores of the layers that may be pruned, and the checked floors."""
    floors, ignore = checked_limits(floors, ignore)
    for key, layers in (("floors", list(floors)), ("ignore", ignore)):
        if unknown := [layer for layer in layers if layer not in scores]:
            near = get_close_matches(unknown[0], scores, 1)
            hint = f"; do you mean {near[0]!r}?" if near else f"; it has {', '.join(list(scores)[:5])} ..."
            raise ScapError(f"{key}: the score table has no layer {unknown[0]!r}{hint}")
    left = {layer: values for layer, values in scores.items() if layer not in ignore}
    if not left:
        raise ScapError("ignore: it names all layers of the score table; leave one to be pruned")
    return left, floors


def checked_limits(floors: Any, ignore: Any) -> tuple[dict[str, int], list[str]]:
    """The arguments `floors` and `ignore`; ScapError where they are no widths or no names, whatever layers there are."""
    floors = {} if floors is None else checked_mapping(floors, "floors", "layers to their least widths, such as {'conv1': 8}")
    for layer, floor in floors.items():
        check_number(floor, f"floors: layer {layer}", 1, whole=True)
    return floors, [ignore] if isinstance(ignore, str) else checked_names(ignore, "ignore", least=0)


class Stopwatch:
    """The time that a network takes under a plan, as a share of its own; each plan is measured once."""

    def __init__(self, network: nn.Module, example: Example, sizes: Sizes, threads: int | None) -> None:
        self.network, self.example, self.sizes, self.threads = network, example, sizes, threads
        self.shares: dict[str, float] = {}

    def share(self, plan: Plan) -> float:
        key = repr(plan)
        slices = self.sizes.graph.slices(plan)
        if not slices:  # the network itself
            return 1.0
        if key not in self.shares:
            smaller = cut(copied(self.network), slices)
            measured = measure_latency(smaller, self.example, other=self.network, threads=self.threads, repeats=15)
            assert measured.ratio is not None
            self.shares[key] = measured.ratio
        return self.shares[key]


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
    sizes, budgets = Sizes(network, example), checked_budgets(macs=macs, params=params)
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


def checked_budgets(**given: float | None) -> dict[str, float]:
    """The shares that are given, by name; ScapError where there is none, or one that is no share."""
    budgets = {key: share for key, share in given.items() if share is not None}
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
