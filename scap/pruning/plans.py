"""From a score table to the channels that are kept (docs/method.md, equation 12). Imports no torch."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scap.checks import check_number, checked_mapping, shown
from scap.errors import ScapError
from scap.reading import FRACTION, channel_values

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[str, NDArray[np.float64]]  # layer -> score of each channel, (K,)
Plan = dict[str, list[int]]  # layer (module path) -> increasing indices of the output channels that are KEPT


def mapped_plan(plan: Any) -> dict[str, Any]:
    """What a plan says of each layer, from any mapping or a pandas Series."""
    return checked_mapping(plan, "plan", "layers to the channels that they keep")


def channel_indices(layer: str, kept: Any) -> list[int]:
    """The channels kept of a layer as plain integers, from a list, range, NumPy array or tensor; no mask of booleans."""
    wrong = f"plan: layer {layer!r}: give the indices of the channels kept as integers, such as [0, 2]"
    try:
        values = kept.tolist() if hasattr(kept, "tolist") else list(kept)
        indices = [operator.index(value) for value in values]
    except TypeError as error:
        raise ScapError(wrong) from error
    if any(isinstance(value, bool | np.bool_) for value in values):
        raise ScapError(f"{wrong}, not a mask of booleans")
    return indices


def plan_at(
    table: "pd.DataFrame",
    threshold: float,
    multiple: int = 1,
    *,
    min_channels: int = 1,
    channels: Mapping[str, int] | None = None,
) -> Plan:
    """The channels whose scores reach a threshold (equation 12); no layer is ever emptied.

    Args:
        table: A score table; its rows may come in any order.
        threshold: τ in [0, 1]; channels with I_k ≥ τ are kept. A lower one never prunes more.
        multiple: Widths are rounded up to a multiple of this, with the next best channels.
        min_channels: A layer keeps this many at least, or all that it has.
        channels: Numbers of output channels by layer that the table must have, where that is to be checked.

    Returns:
        Layer -> increasing indices of the channels kept.

    Raises:
        ScapError: For a threshold outside of [0, 1], and for a table that is damaged (a layer's channels are not 0 … K-1
            once each, a score is no number in [0, 1]) or does not have these `channels`.

    Example:
        >>> import pandas, scap
        >>> table = pandas.DataFrame({"layer": ["conv"] * 4, "channel": range(4), "score": [0.9, 0.1, 0.6, 0.3]})
        >>> scap.plan_at(table, threshold=0.5)
        {'conv': [0, 2]}
        >>> scap.plan_at(table, threshold=0.5, multiple=3)
        {'conv': [0, 2, 3]}
    """
    check_number(threshold, "threshold", 0, 1)
    scores = layer_scores(table, channels)
    widths = {layer: int((values >= threshold).sum()) for layer, values in scores.items()}
    return best_channels(scores, widths, multiple, min_channels)


def plan_of_widths(
    table: "pd.DataFrame",
    widths: Mapping[str, int],
    multiple: int = 1,
    *,
    min_channels: int = 1,
    channels: Mapping[str, int] | None = None,
) -> Plan:
    """The best channels of each layer, as many as `widths` says: one criterion's ranking at the widths of another.

    Args:
        table: A score table; its rows may come in any order.
        widths: How many channels each layer keeps.
        multiple: Widths are rounded up to a multiple of this.
        min_channels: A layer keeps this many at least, or all that it has.
        channels: Numbers of output channels by layer that the table must have, where that is to be checked.

    Returns:
        Layer -> increasing indices of the channels kept. Of equal scores the channel of the smaller index is better.

    Raises:
        ScapError: As `plan_at`, and for a layer without a width.

    Example:
        >>> import pandas, scap
        >>> table = pandas.DataFrame({"layer": ["conv"] * 4, "channel": range(4), "score": [0.9, 0.1, 0.6, 0.3]})
        >>> scap.plan_of_widths(table, {"conv": 3})
        {'conv': [0, 2, 3]}
    """
    return best_channels(layer_scores(table, channels), widths, multiple, min_channels)


def best_channels(scores: Scores, widths: Mapping[str, int], multiple: int, min_channels: int) -> Plan:
    """As `plan_of_widths`, of checked scores."""
    check_number(multiple, "multiple", 1, whole=True)
    check_number(min_channels, "min_channels", 1, whole=True)
    widths, plan = checked_mapping(widths, "widths", "layers to how many channels they keep"), {}
    for layer, values in scores.items():
        if layer not in widths:
            raise ScapError(f"layer {layer}: no width is given for it; the two criteria score different layers")
        check_number(widths[layer], f"layer {layer}: width", 0, whole=True)
        wanted = -(-max(min_channels, widths[layer]) // multiple) * multiple
        best = np.argsort(-values, kind="stable")[:wanted]
        plan[layer] = sorted(int(k) for k in best)
    return plan


def layer_scores(table: "pd.DataFrame", channels: Mapping[str, int] | None = None) -> dict[str, NDArray[np.float64]]:
    """The checked scores of each layer by channel, (K,); `channels`: K of each layer that the table must hold."""
    scores = channel_values(table, "score", FRACTION)
    if channels is None:
        return scores
    channels = checked_mapping(channels, "channels", "layers to how many channels they have")
    for layer, count in channels.items():
        if layer not in scores:
            raise ScapError(f"score table: layer {layer} is missing; make the scores of this network again")
        if len(scores[layer]) != count:
            problem = f"layer {layer} has {len(scores[layer])} channels, but the network's has {shown(count)}"
            raise ScapError(f"score table: {problem}; make the scores of this network again")
    if unknown := scores.keys() - channels.keys():
        raise ScapError(f"score table: layer {min(unknown)} is not among the layers to be pruned; make the scores again")
    return {layer: scores[layer] for layer in channels}
