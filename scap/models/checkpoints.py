"""Checkpoints that someone else trained: checked before any job, loaded by name, never unpickled beyond tensors.

Imports torch only to load: the workflow checks files without it.
"""

import argparse
import copy
import hashlib
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from scap.errors import ScapError

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKSUM = re.compile("[0-9a-fA-F]{8,64}")  # torch.hub puts 8 digits into a file's name
NAMED = 3  # as many keys are named in an error


def check_checkpoint(path: str | Path, sha256: str | None = None) -> None:
    """Check that a checkpoint is there, whole as far as can be told without reading its weights, and the expected one.

    Args:
        path: A safetensors file, or one written by torch.save.
        sha256: The file's SHA-256, or at least its first 8 hexadecimal digits, which torch.hub writes behind the
            name ("resnet20-12fca82f.th"); None checks no sum.

    Raises:
        ScapError: For a missing or damaged file, another kind of file, or another checksum.
    """
    path = Path(path)
    if sha256 is not None and not (isinstance(sha256, str) and CHECKSUM.fullmatch(sha256)):  # YAML reads 12345678 as a number
        raise ScapError(f"sha256: {sha256!r} is no SHA-256; give 8 to 64 hexadecimal digits, in quotes")
    if path.is_dir():
        raise ScapError(f"{path}: is a folder; name the checkpoint's file")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 is not None else ""
        _kind(path)
    except FileNotFoundError as error:
        raise ScapError(f"{path}: there is no such checkpoint; download it, or correct the path") from error
    except OSError as error:
        raise ScapError(f"{path}: cannot be read ({error.strerror})") from error
    if sha256 is not None and not found.startswith(sha256.lower()):
        raise ScapError(f"{path}: its SHA-256 is {found}, not {sha256}; download it again, or correct `sha256`")


def load_checkpoint(
    network: "nn.Module",
    path: str | Path,
    prefix: str = "",
    key: str | None = None,
    sha256: str | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Fill `network` in place with the weights of a checkpoint: all of them, or none where something does not fit.

    Args:
        network: A network whose parameters and buffers have the names and shapes of the checkpoint's.
        path: A safetensors file, or one by torch.save; the latter is read with weights_only=True.
        prefix: What the keys of the network's weights begin with in the file ("module." after training in
            DataParallel). Other keys are passed over.
        key: Where the file wraps its weights, the key that they lie under ("state_dict").
        sha256: As for check_checkpoint.
        leave_out: Names of modules or parameters ("classifier") that keep what the network has, such as a head for
            other classes.

    Raises:
        ScapError: For a missing, damaged or unexpected file, and for weights that are missing, unexpected, of
            another shape or not finite; it names them, and the prefix or key that would do.
    """
    path = Path(path)
    check_checkpoint(path, sha256)
    weights = _weights_under(path, _read(path), key)
    own = network.state_dict()
    for entry in leave_out:
        if not any(_belongs(name, [entry]) for name in own):
            raise ScapError(f"leave_out: {entry!r} is no module or parameter of the network; it has {_some(own)}")
    chosen = OrderedDict((name.removeprefix(prefix), value) for name, value in weights.items() if name.startswith(prefix))
    chosen = OrderedDict((name, value) for name, value in chosen.items() if not _belongs(name, leave_out))
    chosen |= {name: value for name, value in own.items() if _belongs(name, leave_out)}
    metadata = _stripped(getattr(weights, "_metadata", {}), prefix) or own._metadata  # type: ignore[attr-defined]
    chosen._metadata = metadata  # type: ignore[attr-defined]  # versions of modules, which upgrade older weights by it
    network.load_state_dict(_tried(path, network, chosen, list(weights), prefix))


def _tried(path: Path, network: "nn.Module", chosen: "Mapping[str, Tensor]", stored: list[str], prefix: str) -> Any:
    """The state of a copy of `network` with the weights `chosen`; ScapError where they do not fit."""
    own = network.state_dict()
    for name, value in chosen.items():
        if name in own and (flaw := _flaw(value, own[name])):
            raise ScapError(f"{path}: {name} {flaw}")
    copied = copy.deepcopy(network)
    try:
        missing, unexpected = copied.load_state_dict(chosen, strict=False)
    except RuntimeError as error:
        reason = _other_shapes(chosen, own) or " ".join(str(error).split())
        raise ScapError(f"{path}: does not fit the network: {reason}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # PyTorch before 0.4.1 wrote none
    if missing:
        raise ScapError(f"{path}: lacks {_some(missing)} of the network; {_remedy(own, stored, prefix)}")
    if unexpected:
        raise ScapError(
            f"{path}: holds {_some(unexpected)}, which the network lacks; is it of this architecture? "
            "`leave_out` passes them over"
        )
    return copied.state_dict()


def _flaw(stored: Any, own: "Tensor") -> str | None:
    from torch import Tensor, strided

    if not isinstance(stored, Tensor):
        return f"is no tensor, but {type(stored).__name__}"
    if stored.is_meta or stored.layout != strided or (own.is_floating_point() and not stored.is_floating_point()):
        kind = "no values" if stored.is_meta else f"values of {stored.dtype}, {stored.layout}"
        return f"has {kind}; save it as a dense tensor of floating-point numbers"
    if not stored.isfinite().all():
        return "holds NaN or infinity; the network had diverged, or the file is damaged"
    return None


def _other_shapes(chosen: "Mapping[str, Tensor]", own: "Mapping[str, Tensor]") -> str:
    shapes = {name: (tuple(value.shape), tuple(own[name].shape)) for name, value in chosen.items() if name in own}
    differing = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if not differing:
        return ""
    first, (there, here) = next(iter(differing.items()))
    others = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    module = first.rpartition(".")[0] or first
    return f"{first} has the shape {there} there and {here} here{others}; `leave_out: [{module}]` keeps the network's own"


def _remedy(own: Iterable[str], stored: list[str], prefix: str) -> str:
    """What would find the network's weights among the keys `stored`."""
    names = list(own)
    found = Counter(key[: -len(name)] for name in names for key in stored if key.endswith(name))
    best = max((start for start in found if not start or start.endswith(".")), key=lambda start: found[start], default=prefix)
    if best != prefix and found[best] > found[prefix]:
        return f"{_share(found[best], stored)} begin with '{best}': set prefix: {best}" if best else "leave `prefix` out"
    wrapped = Counter(name.split(".", 1)[0] for name in names if name.split(".", 1)[-1] in stored)
    if wrapped:
        start = wrapped.most_common(1)[0][0]
        return f"the network's own begin with '{start}.': give `network.{start}` instead"
    return f"is it of this architecture? Its keys are {_some(stored)}"


def _share(found: int, stored: list[str]) -> str:
    return "all keys" if found >= len(stored) else f"{found} of {len(stored)} keys"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _belongs(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _stripped(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Metadata by module path, of the modules under `prefix` only."""
    return {f"{name}."[len(prefix) :].rstrip("."): entry for name, entry in metadata.items() if f"{name}.".startswith(prefix)}


def _weights_under(path: Path, stored: Any, key: str | None) -> "Mapping[str, Tensor]":
    from torch import Tensor

    def holds_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())

    if not isinstance(stored, Mapping):
        raise ScapError(f"{path}: holds {type(stored).__name__}, no weights by name; save a network's `state_dict()`")
    wrapped = [str(name) for name, value in stored.items() if holds_tensors(value)]
    if key is None and not wrapped and holds_tensors(stored):
        return stored
    if key is not None and holds_tensors(stored.get(key)):
        return stored[key]
    if wrapped:
        asked = "" if key is None else f", not under {key!r}"
        raise ScapError(f"{path}: its weights lie under {' or '.join(wrapped)}{asked}: set key: {wrapped[0]}")
    if holds_tensors(stored):
        raise ScapError(f"{path}: has no key {key!r}, its weights lie at the top; leave `key` out")
    raise ScapError(f"{path}: holds no weights by name; its keys are {_some(map(str, stored))}")


def _kind(path: Path) -> str:
    """ "safetensors" or "torch", by the first bytes of a file; ScapError where it is neither, or was cut short."""
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise ScapError(f"{path}: the file is cut short; download it again")
        return "torch"
    if start.startswith(b"\x80"):  # a pickle: torch.save before PyTorch 1.6
        return "torch"
    if start[8:9] == b"{":
        try:
            with safe_open(path, framework="numpy"):
                return "safetensors"
        except SafetensorError as error:
            raise ScapError(f"{path}: the file is damaged ({error}); download it again") from error
    text = start.decode("ascii", "replace").strip()
    raise ScapError(
        f"{path}: is no checkpoint by safetensors or torch.save: it begins with {text!r}; download the file itself, not "
        "a page about it or a pointer to it"
    )


def _read(path: Path) -> Any:
    """What a file holds: a mapping of tensors, or whatever torch.save was given."""
    import torch
    from safetensors.torch import load_file

    if _kind(path) == "safetensors":
        return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ScapError(
                f"{path}: holds Python objects ({refused[1]}), which are not unpickled, since they may run code; "
                "save the network's `state_dict()` alone where you trust the file"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ScapError(f"{path}: the file is damaged, or no weights ({reason}); download it again") from error


def _numpy_scalars() -> list[Any]:
    """What numbers such as a best accuracy are pickled with; none of it runs code."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
