"""Reading what earlier steps wrote: tables, JSON, tensors.

Every reader checks here what it reads: that it is whole, its names, shapes and ranges, and whose it is. Whatever is wrong ends
with one line (DamagedFile). Imports no torch; pandas and safetensors when they are used.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.errors import DamagedFile, ScapError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

PERCENT, FRACTION, COSINE, COUNT, AMOUNT = (0.0, 100.0), (0.0, 1.0), (-1.0, 1.0), (0, 2**63 - 1), (0.0, 1e300)
ROUNDING = 1e-6  # by so much a value of a channel may leave its limits
DIGEST, FLOATS, PRECISE = "sha256", ("F16", "F32", "F64"), ("F32", "F64")  # the digest is among a file's metadata
Limits = Mapping[str, tuple[float, float]]


def read_table(
    path: Path | str,
    text: Sequence[str] = (),
    numbers: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    limits: Limits | None = None,
    whole: Sequence[str] = (),
) -> pd.DataFrame:
    """The CSV table with these columns (`optional`: numbers or NaN); DamagedFile names the file, the column and the row.

    `limits`: lowest and highest value of a column. `whole`: columns of whole numbers.
    """
    expected = [*text, *numbers, *optional]
    table = _read_csv(path, text, expected)
    for column in expected:
        if column not in table:
            found = ", ".join(map(str, table.columns))
            raise DamagedFile(path, f"column {column!r} is missing (found: {found})")
        if f"{column}.1" in table:  # as pandas calls it
            raise DamagedFile(path, f"column {column!r} is there twice")
    if table.empty:
        raise DamagedFile(path, f"the table has no rows (columns {', '.join(expected)})")
    for column in expected:
        if column not in text:
            given, table[column] = table[column].notna(), _numbers(table[column])
        wrong = table[column].isna() & (given if column in optional else True)
        _refuse(path, column, wrong, "text" if column in text else "a number")
        if limits and column in limits:
            low, high = limits[column]
            inside = table[column].between(low, high) | (table[column].isna() if column in optional else False)
            _refuse(path, column, ~inside, f"between {low:g} and {high:g}")
        if column in whole:
            _refuse(path, column, table[column] % 1 != 0, "a whole number")
    return table


def _read_csv(path: Path | str, text: Sequence[str], expected: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            return pd.read_csv(path, dtype=dict.fromkeys(text, str), index_col=False, encoding="utf-8")
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=list(expected))
    except (OSError, ValueError, OverflowError, pd.errors.ParserWarning) as error:
        raise DamagedFile(path, f"not readable as a CSV table ({_reason(error)})") from error


def _numbers(column: pd.Series) -> pd.Series:
    import pandas as pd

    if column.dtype == bool:
        return pd.Series(float("nan"), index=column.index)
    return pd.to_numeric(column, errors="coerce").astype(float)


def _refuse(path: Path | str, column: str, wrong: pd.Series, kind: str) -> None:
    if wrong.any():
        raise DamagedFile(path, f"column {column!r}, row {int(wrong.to_numpy().argmax()) + 1} is not {kind}")


def _reason(error: BaseException) -> str:
    return (str(getattr(error, "strerror", None) or error).strip() or type(error).__name__).splitlines()[0]


def read_history(path: Path | str, *numbers: str) -> pd.DataFrame:
    """The history of a training: epochs 1, 2, … once each; `loss`, `train_top1`, `holdout_top1` (or NaN), more `numbers`."""
    limits = {"train_top1": PERCENT, "holdout_top1": PERCENT, "seconds": AMOUNT, "epoch": COUNT}
    table = read_table(path, (), ["epoch", "loss", "train_top1", *numbers], ["holdout_top1"], limits=limits, whole=["epoch"])
    if table["epoch"].tolist() != list(range(1, len(table) + 1)):
        raise DamagedFile(path, "its epochs are not 1, 2, … once each, as in the history of one training")
    return table


def channel_values(
    table: pd.DataFrame, column: str, limits: tuple[float, float], *, source: str | Path = "score table"
) -> dict[str, NDArray[np.float64]]:
    """A column of a table of channels (`layer`, `channel`, in any order) by layer, each an array indexed by the channel.

    DamagedFile names `source`, layer and channel where the channels are not 0 … K-1 once each, or a value breaks the `limits`.
    """
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise ScapError(f"{source}: is a {type(table).__name__}; give the DataFrame that score_network returned")
    for name in ("layer", "channel", column):
        if list(table.columns).count(name) != 1:
            raise DamagedFile(source, f"must have one column {name!r} (found: {', '.join(map(str, table.columns))})")
    if table.empty or table["layer"].isna().any():
        raise DamagedFile(source, "has no rows" if table.empty else "has a row without a layer")
    if pd.api.types.is_float_dtype(table["layer"]):
        raise DamagedFile(source, "names layers by numbers, where '0.10' is '0.1'; read it with dtype={'layer': str}")
    parts = table.groupby("layer", sort=False)
    return {str(layer): _indexed(part, str(layer), column, limits, source) for layer, part in parts}


def _indexed(
    part: pd.DataFrame, layer: str, column: str, limits: tuple[float, float], source: str | Path
) -> NDArray[np.float64]:
    channels, values = _numbers(part["channel"]), _numbers(part[column])
    twice, missing = channels[channels.duplicated()], sorted(set(range(len(part))) - set(channels))
    if missing:  # as many rows as channels: then another is there twice, or is no channel
        problem = f"channel {twice.iloc[0]:g} is there twice" if len(twice) else f"channel {missing[0]} is missing"
        raise DamagedFile(source, f"layer {layer}: {problem} in {len(part)} rows; each layer has the channels 0 to K-1, once")
    wrong = ~values.between(limits[0] - ROUNDING, limits[1] + ROUNDING)
    if wrong.any():
        at = wrong.to_numpy().argmax()
        place = f"layer {layer}, channel {int(channels.iloc[at])}: {column} is {part[column].iloc[at]}"
        raise DamagedFile(source, f"{place}, not a number between {limits[0]:g} and {limits[1]:g}")
    return values.to_numpy()[channels.to_numpy().argsort()]


def read_json(path: Path | str, *, limits: Limits | None = None, whole: Sequence[str] = (), text: Sequence[str] = ()) -> dict:
    """A JSON object; `limits` of the numbers that it must hold, `whole` ones and texts, by name (`pruned.top1`: nested)."""
    try:
        values = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(path, f"not readable as JSON ({_reason(error)})") from error
    if not isinstance(values, dict):
        raise DamagedFile(path, "is no JSON object")
    for name, (low, high) in (limits or {}).items():
        value = _nested(path, values, name)
        kinds = int if name in whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            kind = "a whole number" if name in whole else "a number"
            raise DamagedFile(path, f"{name!r} is {value!r}, not {kind} between {low:g} and {high:g}")
    for name, value in {name: _nested(path, values, name) for name in text}.items():
        if not isinstance(value, str):
            raise DamagedFile(path, f"{name!r} is {value!r}, not text")
    return values


def _nested(path: Path | str, values: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            raise DamagedFile(path, f"{name!r} is missing")
        values = values[key]
    return values


class StoredTensors:
    """An open safetensors file: `metadata`, and tensors by name, each checked when it is taken.

    `verified`: whether it told a SHA-256 of itself, which was compared.
    """

    def __init__(self, path: Path | str, file: Any, verified: bool) -> None:
        self.path, self.file, self.verified = path, file, verified
        self.metadata: dict[str, str] = file.metadata() or {}
        self.names: list[str] = list(file.keys())
        self.sizes: dict[str, int] = {}

    def take(self, name: str, shape: Sequence[int | str], dtypes: Sequence[str] = FLOATS) -> Any:
        """The tensor `name`, finite, of one of these dtypes ("F32", …) and of this shape.

        A dimension given as a letter has any size above 0, the same wherever the letter stands in this file; as "*", any.
        """
        if name not in self.names:
            found = ", ".join(self.names[:6]) + (", …" if len(self.names) > 6 else "")
            raise DamagedFile(self.path, f"holds no {name!r} (found: {found})")
        stored = self.file.get_slice(name)
        sizes, dtype = stored.get_shape(), stored.get_dtype()
        wanted = [size if isinstance(size, int) else self.sizes.get(size, size) for size in shape]
        fits = len(sizes) == len(wanted) and 0 not in sizes
        if not fits or any(isinstance(w, int) and n != w for n, w in zip(sizes, wanted, strict=True)):
            raise DamagedFile(self.path, f"{name!r} has shape {tuple(sizes)}, not ({', '.join(map(str, wanted))})")
        if dtype not in dtypes:
            raise DamagedFile(self.path, f"{name!r} is of type {dtype}, not {' or '.join(dtypes)}")
        self.sizes |= {letter: size for letter, size in zip(shape, sizes, strict=True) if isinstance(letter, str)}
        self.sizes.pop("*", None)
        values = self.file.get_tensor(name)
        if dtype in FLOATS and not finite(values):
            raise DamagedFile(self.path, f"{name!r} holds NaN or infinity")
        return values

    def check_identity(self, identity: Mapping[str, str]) -> None:
        """DamagedFile where the metadata say that the file is of something else than `identity`."""
        for key, value in identity.items():
            if (found := self.metadata.get(key)) != value:
                raise DamagedFile(self.path, f"is of {key} {found!r}, not of {value!r}")


def finite(values: Any, at_once: int = 2**22) -> bool:
    """Whether no value is NaN or infinity, which the smallest or the largest value would be.

    In parts: what is memory-mapped need not be in memory at once. For PyTorch's tensors the two extremes are found twenty
    times as fast as `isfinite` asks every value.
    """
    import numpy as np

    values = values.reshape(-1)
    parts = (values[start : start + at_once] for start in range(0, len(values), at_once))
    return all(
        bool(np.isfinite(part).all()) if isinstance(part, np.ndarray) else all(map(math.isfinite, part.aminmax()))
        for part in parts
    )


@contextmanager
def open_tensors(path: str | Path, framework: str = "pt", *, digest: bool = False) -> Iterator[StoredTensors]:
    """Open a safetensors file, tensors as those of PyTorch ("pt") or NumPy ("numpy"), memory-mapped.

    Where the file tells a SHA-256 of itself (scap.tensors.save_tensors), it is compared; `digest`: it must tell one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        told = check_digest(Path(path))
        with safe_open(str(path), framework=framework) as file:
            if digest and not told:
                raise DamagedFile(path, "has no checksum of its content, so another program wrote it")
            yield StoredTensors(path, file, told)
    except (OSError, SafetensorError) as error:
        damaged = f"the file is damaged, or no safetensors ({_reason(error)})"
        raise DamagedFile(path, "there is no such file" if isinstance(error, FileNotFoundError) else damaged) from error


def check_digest(path: Path) -> bool:
    """Compare a safetensors file with the SHA-256 among its metadata; False where there is none, DamagedFile if they differ."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise DamagedFile(path, "the file is damaged, or no safetensors (its header is longer than the file)")
        try:
            header = json.loads(file.read(length))
            expected = header["__metadata__"].pop(DIGEST)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False
        if not header["__metadata__"]:
            del header["__metadata__"]
        found = hashlib.sha256(header_bytes(header))
        while part := file.read(2**22):
            found.update(part)
    if found.hexdigest() != expected:
        raise DamagedFile(path, "the file is damaged: its content does not fit the checksum in it")
    return True


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The header of a safetensors file as it is written: length, JSON, spaces up to a multiple of 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
