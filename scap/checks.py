"""Checks of what users pass to the library: one ScapError line instead of an error deep inside. Imports no torch."""

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from scap.errors import ScapError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def check_number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> None:
    """ScapError where `value` is no finite number (`whole`: no whole one) in [low, high]; a bool is none either."""
    kind = "a whole number" if whole else "a number"
    kinds: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ScapError(f"{name} is {value!r} ({type(value).__name__}); give {kind}")
    if not low <= value <= high or value in (math.inf, -math.inf):
        lies = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be {low:g} or more" if low > -math.inf else "be finite"
        raise ScapError(f"{name} is {value}; it must {lies}")


def check_path(path: Any, name: str = "path") -> None:
    """ScapError where `path` cannot be that of a file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ScapError(f"{name} is {path!r:.60} ({type(path).__name__}); give the path of a file as text, or a pathlib.Path")
    text = os.fspath(path)
    if os.path.basename(os.path.normpath(text)) in ("", ".", ".."):
        raise ScapError(f"{name} is {text!r}, which names no file; give the path of one")
    try:
        valid = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ScapError(f"{name} is {text!r:.60}: it holds a character that no file's name may hold; give another name")


def checked_names(values: Any, name: str) -> list[str]:
    """The names that `values` lists; ScapError for a single text, whose letters would be names, and for what holds others."""
    remedy = "give a list of layers' names, such as ['conv1']"
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ScapError(f"{name} is {values!r:.60} ({type(values).__name__}); {remedy}")
    names = list(values)
    if not names:
        raise ScapError(f"{name}: none is given; name one at least, or give None for all that can be pruned")
    for each in names:
        if not isinstance(each, str):
            raise ScapError(f"{name} holds {each!r:.60} ({type(each).__name__}); {remedy}")
    return names


def checked_mapping(values: Any, name: str, meaning: str) -> dict[str, Any]:
    """Any mapping, or a pandas Series, as a dict; ScapError where it is none, such as a table."""
    if not callable(getattr(values, "items", None)) or hasattr(values, "columns"):  # a table's items are its columns
        raise ScapError(f"{name}: is a {type(values).__name__}; it must map {meaning}")
    return dict(values.items())


def check_dense(tensor: "Tensor", name: str) -> None:
    """ScapError where a tensor has no values, or not all of them in memory."""
    if tensor.is_meta:
        raise ScapError(f"{name} is on the device meta, which keeps no values; make it on another one")
    if tensor.is_nested or str(tensor.layout) != "torch.strided":
        kind = "nested" if tensor.is_nested else f"of the layout {tensor.layout}"
        raise ScapError(f"{name} is {kind}; make it a dense tensor, as by to_dense()")


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
