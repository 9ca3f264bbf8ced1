"""Checks of what users pass to the library: one ScapError line instead of an error deep inside. Imports no torch."""

import math
import os
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.errors import ScapError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


LONGEST = 60  # characters of a value that messages show
MOST_THREADS = 2**12  # more than any machine has; PyTorch's own limit is a C integer


def shown(value: Any) -> str:
    """A value as messages show it: on one short line, whatever it is."""
    try:
        text = " ".join((str if isinstance(value, Real) else repr)(value).split())
    except Exception:  # Python writes no integer of thousands of digits; a class of the user's own may fail in any way
        text = "..."
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def check_number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> None:
    """ScapError where `value` is no finite number (`whole`: no whole one) in [low, high]; a bool is none either."""
    kind = "a whole number" if whole else "a number"
    kinds: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ScapError(f"{name} is {shown(value)} ({type(value).__name__}); give {kind}")
    if not low <= value <= high or value in (math.inf, -math.inf):
        lies = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be {low:g} or more" if low > -math.inf else "be finite"
        raise ScapError(f"{name} is {shown(value)}; it must {lies}")


def check_path(path: Any, name: str = "path") -> None:
    """ScapError where `path` cannot be that of a file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ScapError(f"{name} is {shown(path)} ({type(path).__name__}); give the path of a file as text, or a pathlib.Path")
    text = os.fspath(path)
    if os.path.basename(os.path.normpath(text)) in ("", ".", ".."):
        raise ScapError(f"{name} is {text!r}, which names no file; give the path of one")
    try:
        valid = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ScapError(f"{name} is {text!r:.60}: it holds a character that no file's name may hold; give another name")


def check_flag(value: Any, name: str) -> None:
    """ScapError where `value` is neither True nor False, Python's own or NumPy's: all else would be taken for one of them."""
    import numpy as np

    if not isinstance(value, bool | np.bool_):
        raise ScapError(f"{name} is {shown(value)} ({type(value).__name__}); give True or False")


def checked_file(value: Any, name: str) -> Path:
    """The path of a file that may come to be; ScapError where `value` is no path, or that of a folder."""
    check_path(value, name)
    path = Path(value)
    if path.is_dir():
        raise ScapError(f"{name}: {path} is a folder; give the path of a file in it")
    return path


def check_function(value: Any, name: str) -> None:
    """ScapError where `value` is neither None nor can be called."""
    if value is not None and not callable(value):
        raise ScapError(f"{name}: is a {type(value).__name__}; give a function")


def check_choice(value: Any, name: str, choices: Collection[Any], problem: str = "is unknown") -> None:
    """ScapError where `value` is none of the `choices`, which are all of one class."""
    if not isinstance(value, type(next(iter(choices)))) or value not in choices:  # an array would be compared item by item
        raise ScapError(f"{name}: {shown(value)} {problem}; choose from {', '.join(map(str, choices))}")


def checked_names(values: Any, name: str, *, least: int = 1) -> list[str]:
    """The `least` or more names that `values` lists; ScapError for a single text, whose letters would be names, and others."""
    remedy = "give a list of layers' names, such as ['conv1']"
    try:
        names = None if isinstance(values, str) else list(values)
    except TypeError:  # also arrays and tensors of no dimension, which are Iterable all the same
        names = None
    if names is None:
        raise ScapError(f"{name} is {shown(values)} ({type(values).__name__}); {remedy}")
    if len(names) < least:
        raise ScapError(f"{name}: none is given; name one at least, or give None for all that can be pruned")
    for each in names:
        if not isinstance(each, str):
            raise ScapError(f"{name} holds {shown(each)} ({type(each).__name__}); {remedy}")
    return names


def checked_mapping(values: Any, name: str, meaning: str) -> dict[str, Any]:
    """Any mapping of texts, or a pandas Series, as a dict; ScapError where it is none, such as a table."""
    named = callable(getattr(values, "items", None)) and not isinstance(values, type)
    if not named or hasattr(values, "columns"):  # a table's items are its columns
        raise ScapError(f"{name}: is a {type(values).__name__}; it must map {meaning}")
    for key in (found := dict(values.items())):
        if not isinstance(key, str):
            raise ScapError(f"{name}: {shown(key)} ({type(key).__name__}) is no layer's name; it must map {meaning}")
    return found


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
