"""From a score table to the channels that are kept (docs/method.md, equation 12). Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scap.errors import ScapError

if TYPE_CHECKING:
    import pandas as pd

Plan = dict[str, list[int]]  # layer (module path) -> increasing indices of the output channels that are KEPT


def plan_at(table: "pd.DataFrame", threshold: float, multiple: int = 1) -> Plan:
    """Channels kept per layer of a score table: I_k ≥ τ, never none, their number rounded up to a multiple (equation 12)."""
    if not 0 <= threshold <= 1:
        raise ScapError(f"threshold is {threshold}; it must lie in [0, 1]")
    widths = {layer: int((values >= threshold).sum()) for layer, values in _scores(table).items()}
    return plan_of_widths(table, widths, multiple)


def plan_of_widths(table: "pd.DataFrame", widths: Mapping[str, int], multiple: int = 1) -> Plan:
    """The `widths[layer]` best channels of each layer, at least one, rounded up to a multiple, at most all of them."""
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
