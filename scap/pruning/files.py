"""A network in one file: architecture, plan and weights. Loading needs no surgery: the file has the shapes."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, fitted, run
from scap.models.layers import conv_layers
from scap.pruning.history import applied, last_applied, note
from scap.pruning.plans import Plan, channel_indices
from scap.pruning.state import State, fill, fit_shapes, state_of
from scap.tensors import save_tensors

FORMAT = "scap-network-1"
FIELDS = ("architecture", "arguments", "plan", "example_shape", "extra")
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
    """Write weights, and how the network around them is rebuilt, to one safetensors file; its folder is made.

    `architecture` and `arguments` are those of scap.models.build.build_network (None for a network of one's own,
    which load_network needs a `build` for), `plan` is the one that `network` was pruned by (by default what the surgery
    noted on it: of a network that was pruned twice the two in one), `example_shape` (N, channels, H, W) an input's,
    `extra` anything that JSON can hold. Raises ScapError where they disagree.
    """
    plan = _own_plan(network, plan)
    state = state_of(network)
    shape = None if example_shape is None else [int(size) for size in example_shape]
    values = (architecture, arguments or {}, plan, shape, extra or {})
    try:
        metadata = json.dumps(dict(zip(FIELDS, values, strict=True)) | state.notes)
    except TypeError as error:
        raise ScapError(f"{path}: arguments and extra must hold what JSON can hold ({error})") from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(Path(path), state.tensors, {FORMAT: metadata})  # one key: several are written in random order


def _own_plan(network: nn.Module, plan: Plan | None) -> Plan | None:
    """The plan that leads to `network` from the unpruned one; ScapError where `plan` is another one."""
    noted = applied(network)
    if plan is None:
        return noted
    plan = {layer: channel_indices(layer, kept) for layer, kept in plan.items()}
    if noted is None:
        _check_widths(network, plan)
        return plan or None
    if plan not in (noted, last_applied(network)):
        raise ScapError(
            "plan: it is not the one that prune_network applied to this network; leave it out, the network has a note of it"
        )
    return noted


def _check_widths(network: nn.Module, plan: Plan) -> None:
    convs = conv_layers(network)
    for layer, kept in plan.items():
        channels = convs[layer].out_channels if layer in convs else 0
        if channels != len(kept):
            raise ScapError(
                f"plan: layer {layer!r} keeps {len(kept)} channels, but the network's has {channels}; "
                "save the network that prune_network returned for this plan"
            )


def load_network(path: str | Path, build: Callable[[], nn.Module] | None = None, example: Example | None = None) -> nn.Module:
    """The network of a file by save_network, in evaluation mode on the CPU, from that file alone.

    `build` makes the unpruned network where the file names no architecture; a pruned network is run once, on `example`
    or on zeros of the saved shape. Raises ScapError for a missing or damaged file and where network and weights do not
    fit; nothing much larger than the file is allocated before that is known.
    """
    metadata, tensors = _read_all(path), _read_weights(path)
    plan, state = metadata["plan"] or {}, State(tensors, metadata)
    if build is None:
        network = _built(path, metadata, state)
    else:
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced: spare the caller's stream
            network = build()
        with _naming(path):
            fit_shapes(network, state, plan)
    with _naming(path):
        fill(network, state)
    if plan:
        note(network, None, plan)
        _try(path, network, metadata["example_shape"], example, named=build is None)
    return network.eval()


def _built(path: str | Path, metadata: dict[str, Any], state: State) -> nn.Module:
    """The network of a named architecture, made without memory first, to see whether the file's weights fit it."""
    from scap.models.build import build_network

    remedy = "pass `build`, a function that makes the unpruned network"
    if metadata["architecture"] is None:
        raise ScapError(f"{path}: names no architecture; {remedy}")
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            network = build_network(metadata["architecture"], **metadata["arguments"])
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ScapError(f"{path}: cannot build its network ({reason}); {remedy}") from error
    with _naming(path):
        fit_shapes(network, state, metadata["plan"] or {})
    return network


def _try(path: str | Path, network: nn.Module, shape: list[int] | None, example: Example | None, named: bool) -> None:
    """Run the network once; that of a named architecture without memory, whatever size the file asks for."""
    if example is None:
        if not shape or not (named or math.prod(shape[1:]) <= MOST_VALUES):
            return
        example = torch.zeros([1, *shape[1:]], device="meta" if named else "cpu")
        network = copy.deepcopy(network).to("meta") if named else network
    try:
        with torch.inference_mode():
            run(network.eval(), fitted(example, *device_and_precision(network)))
    except Exception as error:  # the user's forward may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ScapError(f"{path}: its network does not run on an example {described(example)}: {reason}") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """`architecture`, `arguments`, `plan`, `example_shape` and `extra` of a file by save_network."""
    metadata = _read_all(path)
    return {field: metadata[field] for field in FIELDS}


def _read_all(path: str | Path) -> dict[str, Any]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise ScapError(f"{path}: is no network saved by SCAP (its format is not {FORMAT!r})")
    try:
        fields = json.loads(metadata[FORMAT])
        _check_types(fields)
        return fields
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ScapError(f"{path}: the file is damaged ({error!r}); make it again") from error


def _check_types(fields: dict[str, Any]) -> None:
    kinds = {"architecture": str, "arguments": dict, "plan": dict, "example_shape": list, "extra": dict}
    for field, kind in kinds.items():
        if not isinstance(fields[field], kind | (type(None) if field in ("architecture", "plan", "example_shape") else kind)):
            raise TypeError(f"{field} is no {kind.__name__}")
    for layer, kept in (fields["plan"] or {}).items():
        if not isinstance(kept, list) or not all(type(channel) is int and channel >= 0 for channel in kept):
            raise TypeError(f"the plan of layer {layer!r} is no list of channels")
    if not all(type(size) is int and size >= 0 for size in fields["example_shape"] or []):
        raise TypeError("example_shape is no list of sizes")


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ScapError as error:
        raise ScapError(f"{path}: {error}") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise ScapError(f"{path}: there is no such file; make it first") from error
    except (SafetensorError, OSError) as error:
        raise ScapError(f"{path}: the file is damaged, or no safetensors ({error}); make it again") from error
