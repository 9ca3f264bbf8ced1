"""Checks of what users pass to the library: one ScapError line instead of an error deep inside. Imports no torch."""

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from scap.errors import ScapError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def check_number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> None:
    """ScapError where `value` is no finite number (`whole`: no whole one) in [low, high]; a bool is none either."""
    kind = "a whole number" if whole else "a number"
    kinds: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ScapError(f"{name} is {value!r} ({type(value).__name__}); give {kind}")
    if not low <= value <= high or value in (math.inf, -math.inf):
        lies = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be {low:g} or more" if low > -math.inf else "be finite"
        raise ScapError(f"{name} is {value}; it must {lies}")


def check_finite(values: "NDArray[np.floating]", what: str) -> None:
    """ScapError that names the first channel of `values` (K,) which is NaN or infinite."""
    import numpy as np

    if values.ndim != 1 or not len(values):
        raise ScapError(f"{what}: shape {values.shape}; one value per output channel is needed")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ScapError(
            f"{what}: channel {wrong[0]} is {values[wrong[0]]} ({len(wrong)} of {len(values)} are not finite); "
            "the network or what was measured on it is damaged: train or record it again"
        )
