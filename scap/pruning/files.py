"""A network in one file: architecture, plan and weights. Loading needs no surgery: the file has the shapes."""

import copy
import json
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scap.checks import check_path
from scap.errors import DamagedFile, ScapError
from scap.models.inputs import Example, device_and_precision, fitted, run
from scap.models.layers import not_a_layer, weighted_layers, width
from scap.models.modes import evaluating
from scap.models.names import own_function
from scap.pruning.copies import check_network, copied, first_line, running, same_randomness, undisturbed
from scap.pruning.history import applied, last_applied, note, whole_shapes
from scap.pruning.plans import Plan, channel_indices, mapped_plan
from scap.pruning.state import NOTES, State, fill, fit_shapes, is_complete, state_of
from scap.reading import open_tensors
from scap.tensors import save_tensors

FORMAT = "scap-network-1"
FIELDS = ("architecture", "arguments", "plan", "example_shape", "extra")
NO_SHAPE = "example_shape: give the sizes of an input, whole numbers of 0 or more, such as images.shape or (1, 3, 32, 32)"
MOST_VALUES = 2**22  # of an input that is made from its saved shape for a network of one's own


def save_network(
    path: str | Path,
    network: nn.Module,
    *,
    architecture: str | None = None,
    arguments: dict[str, Any] | None = None,
    plan: Plan | None = None,
    example_shape: Sequence[int] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write weights, and how the network around them is rebuilt, to one safetensors file. No pickles.

    Kernels of float32 that float16 holds exactly take half the space, and come back as float32.

    Args:
        path: The file; its folder is made.
        network: A network, pruned or not.
        architecture: Its name for scap.models.build.build_network; None for a network of your own, which `load_network`
            needs a `build` for.
        arguments: The arguments of build_network.
        plan: The plan that it was pruned by; by default what the surgery noted on it (of a network that was pruned twice
            the two in one, without layers that were replaced by others of another width since).
        example_shape: (N, channels, H, W) of an input.
        extra: A dict of anything that JSON can hold.

    Raises:
        ScapError: For a network that is wrapped, compiled or without values, where the plan is not the network's, for
            arguments of other types or that JSON cannot hold, for what is no path, and where the file cannot be written.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> scap.save_network("network.safetensors", network, example_shape=(1, 3, 8, 8))
    """
    check_path(path)
    check_network(network)
    plan = _own_plan(network, plan)
    sizes = None if example_shape is None else _sizes(example_shape)
    state = state_of(network).halved()
    values = (architecture, {} if arguments is None else arguments, plan, sizes, {} if extra is None else extra)
    whole = whole_shapes(network)
    fields = dict(zip(FIELDS, values, strict=True)) | state.notes | ({} if whole is None else {"whole": whole})
    _check_types(fields)
    try:
        metadata = json.dumps(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise ScapError(f"{path}: arguments and extra must hold what JSON can hold ({error})") from error
    save_tensors(path, state.tensors, {FORMAT: metadata})  # one key: several are written in random order


def _sizes(shape: Sequence[int]) -> list[int]:
    try:
        return [operator.index(size) for size in shape]
    except TypeError as error:
        raise ScapError(NO_SHAPE) from error


def _own_plan(network: nn.Module, plan: Plan | None) -> Plan | None:
    """The plan that leads to `network` from the unpruned one; ScapError where `plan` is another one."""
    noted = applied(network)
    if plan is None:
        return noted
    plan = {layer: channel_indices(layer, kept) for layer, kept in mapped_plan(plan).items()}
    if noted is None:
        _check_widths(network, plan)
        return plan or None
    if plan not in (noted, last_applied(network)):
        raise ScapError(
            "plan: it is not the one that prune_network applied to this network; leave it out, the network has a note of it"
        )
    return noted


def _check_widths(network: nn.Module, plan: Plan) -> None:
    layers = weighted_layers(network)
    for layer, kept in plan.items():
        if layer not in layers:
            raise ScapError(f"plan: {not_a_layer(network, layer, True)}")
        if (channels := width(layers[layer])) != len(kept):
            raise ScapError(
                f"plan: layer {layer!r} keeps {len(kept)} channels, but the network's has {channels}; "
                "save the network that prune_network returned for this plan"
            )


def load_network(
    path: str | Path,
    build: Callable[[], nn.Module] | None = None,
    example: Example | None = None,
    *,
    run_code: bool = False,
) -> nn.Module:
    """The network of a file by `save_network`, pruned or not, in evaluation mode on the CPU.

    Args:
        path: The file.
        build: A function that makes the unpruned network, where the file names no architecture.
        example: An input on which a copy of a pruned network is run once; zeros of the saved shape by default.
        run_code: Whether a Python file that is named as the architecture (FILE.py:FUNCTION) may be run. Say so of files
            that you trust.

    Returns:
        The network.

    Raises:
        ScapError: For a missing or damaged file, for one that names no architecture where `build` is not given, or a Python
            file where `run_code` is not, and where network and weights do not fit: `build` makes tensors of other
            shapes than the network had, unpruned, that was saved, or one tensor for two of different values. Nothing much
            larger than the file is allocated before that is known.

    Example:
        >>> import scap, torch
        >>> def make_network():
        ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> scap.save_network("network.safetensors", make_network(), example_shape=(1, 3, 8, 8))
        >>> scap.load_network("network.safetensors", build=make_network)[0].out_channels
        8
    """
    metadata, state = _read(path)
    plan = metadata["plan"] or {}
    network = _made(path, metadata, state, build, run_code)
    if plan:
        note(network, None, plan, whole=metadata.get("whole"))
        _try(path, network, metadata["example_shape"], example, named=build is None)
    return evaluating(network)


def load_unpruned(path: str | Path, build: Callable[[], nn.Module] | None = None, *, run_code: bool = False) -> nn.Module:
    """As load_network, for a file without a plan, such as a baseline's."""
    metadata, state = _read(path)
    if metadata["plan"]:
        raise ScapError(f"{path}: is a pruned network where an unpruned one is wanted; load it with load_network")
    return evaluating(_made(path, metadata, state, build, run_code))


def _made(
    path: str | Path, metadata: dict[str, Any], state: State, build: Callable[[], nn.Module] | None, run_code: bool
) -> nn.Module:
    """The network with the state's shapes and values; a named one is first made without memory, to see whether it fits."""
    plan = metadata["plan"] or {}
    with _naming(path), torch.inference_mode(False):  # its tensors would not train
        with same_randomness():  # the initial weights are replaced: spare the caller's stream
            if build is not None:
                network = _built(build)
            else:
                with torch.device("meta"):
                    network = _build_named(path, metadata, run_code)
                fit_shapes(copy.deepcopy(network), state, plan)
                if not is_complete(network, state):  # it holds tensors that the file does not have
                    network = _build_named(path, metadata, run_code)
        fit_shapes(network, state, plan)
        fill(network, state)
    return network


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    if isinstance(build, nn.Module) or not callable(build):
        raise ScapError(f"build: is a {type(build).__name__}; give a function that makes the unpruned network")
    try:
        network = build()
    except Exception as error:  # it is the user's
        raise ScapError(f"build: it fails with {type(error).__name__}: {first_line(error)}") from error
    try:
        check_network(network)
    except ScapError as error:
        raise ScapError(f"build: it gives the wrong thing: {error}") from error
    return copied(network)  # the caller may still use it


def _build_named(path: str | Path, metadata: dict[str, Any], run_code: bool) -> nn.Module:
    from scap.models.build import build_network

    remedy = "pass `build`, a function that makes the unpruned network"
    if metadata["architecture"] is None:
        raise ScapError(f"names no architecture; {remedy}")
    if own_function(metadata["architecture"]) and not run_code:
        asked = "which is not run unasked; give run_code=True where you trust the file"
        raise ScapError(f"its network is made by {metadata['architecture']}, {asked}, or {remedy}")
    try:
        return build_network(metadata["architecture"], **metadata["arguments"])
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise ScapError(f"cannot build its network ({first_line(error)[:200]}); {remedy}") from error


def _try(path: str | Path, network: nn.Module, shape: list[int] | None, example: Example | None, named: bool) -> None:
    """Run a copy of the network once; that of a named architecture without memory, whatever size the file asks for."""
    meta = example is None and named
    if example is None:
        if not shape or not (named or math.prod(shape[1:]) <= MOST_VALUES):
            return
        example = torch.zeros([1, *shape[1:]], device="meta" if meta else "cpu")
    trial = evaluating(copied(network))  # a pass may move statistics, and keep what it makes
    trial = trial.to("meta") if meta else trial
    with running(example, f"{path}: its network"), undisturbed(trial):
        run(trial, fitted(example, *device_and_precision(trial)))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """`architecture`, `arguments`, `plan`, `example_shape` and `extra` of a file by save_network."""
    metadata = _read(path, weights=False)[0]
    return {field: metadata[field] for field in FIELDS}


def _read(path: str | Path, weights: bool = True) -> tuple[dict[str, Any], State]:
    check_path(path)
    with open_tensors(path) as file:
        if FORMAT not in file.metadata or not file.verified:
            raise DamagedFile(path, f"is no network saved by SCAP (its format is not {FORMAT!r}, or it has no checksum)")
        try:
            fields = json.loads(file.metadata[FORMAT])
            _check_types(fields)
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            reason = error if isinstance(error, ScapError) else repr(error)
            raise DamagedFile(path, f"the file is damaged ({reason})") from error
        tensors = {name: file.file.get_tensor(name).clone() for name in file.names} if weights else {}
    return fields, State(tensors, fields).doubled()


def _check_types(fields: dict[str, Any]) -> None:
    """ScapError where a field is not what `load_network` takes: asked before a file is written, and after it is read."""
    kinds = {"architecture": str, "arguments": dict, "plan": dict, "example_shape": list, "extra": dict}
    for field, kind in kinds.items():
        optional = type(None) if field in ("architecture", "plan", "example_shape") else kind
        if not isinstance(fields[field], kind | optional):
            raise ScapError(f"{field}: is a {type(fields[field]).__name__}; it must be a {kind.__name__}")
    for field, kind in NOTES.items():
        note = fields.get(field, kind())
        names = isinstance(note, kind) and all(isinstance(name, str) for name in note)
        if not names or not all(_is_noted(field, value) for value in (note.values() if isinstance(note, dict) else ())):
            raise ScapError(f"network: the {field} of its state are no {kind.__name__} of names")
    if not all(isinstance(name, str) for name in fields["arguments"]):
        raise ScapError("arguments: their names must be text")
    for layer, kept in (fields["plan"] or {}).items():
        if not isinstance(kept, list) or not all(type(channel) is int and channel >= 0 for channel in kept):
            raise ScapError(f"plan: layer {layer!r}: its channels must be whole numbers of 0 or more")
    if not all(type(size) is int and size >= 0 for size in fields["example_shape"] or []):
        raise ScapError(NO_SHAPE)


def _is_noted(field: str, value: Any) -> bool:
    """Whether a note on a name may have this value."""
    if field == "whole":
        return isinstance(value, list | tuple) and all(type(size) is int and size >= 0 for size in value)
    return isinstance(value, str if field == "tied" else int | None)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ScapError as error:
        raise ScapError(f"{path}: {error}") from error
