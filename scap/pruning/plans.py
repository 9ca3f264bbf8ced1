"""From a score table to the channels that are kept (docs/method.md, equation 12). Imports no torch."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scap.errors import ScapError

if TYPE_CHECKING:
    import pandas as pd

Plan = dict[str, list[int]]  # layer (module path) -> increasing indices of the output channels that are KEPT


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


def plan_at(table: "pd.DataFrame", threshold: float, multiple: int = 1) -> Plan:
    """Channels kept per layer of a score table: I_k ≥ τ, never none, their number rounded up to a multiple (equation 12)."""
    if not 0 <= threshold <= 1:
        raise ScapError(f"threshold is {threshold}; it must lie in [0, 1]")
    widths = {layer: int((values >= threshold).sum()) for layer, values in _scores(table).items()}
    return plan_of_widths(table, widths, multiple)


def plan_of_widths(table: "pd.DataFrame", widths: Mapping[str, int], multiple: int = 1) -> Plan:
    """The `widths[layer]` best channels of each layer, at least one, rounded up to a multiple, at most all of them."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | np.integer) or multiple < 1:
        raise ScapError(f"multiple is {multiple!r}; it must be an integer, 1 or more")
    plan = {}
    for layer, values in _scores(table).items():
        if layer not in widths:
            raise ScapError(f"layer {layer}: no width is given for it; the two criteria score different layers")
        wanted = -(-max(1, widths[layer]) // multiple) * multiple
        best = np.argsort(-values, kind="stable")[:wanted]
        plan[layer] = sorted(int(k) for k in best)
    return plan


def _scores(table: "pd.DataFrame") -> dict[str, NDArray[np.float64]]:
    return {str(layer): part["score"].to_numpy(float) for layer, part in table.groupby("layer", sort=False)}
