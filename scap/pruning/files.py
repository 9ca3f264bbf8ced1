"""A pruned network in one file: architecture, plan and weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scap.errors import DamagedFile, ScapError
from scap.models.layers import conv_layers
from scap.models.names import own_function
from scap.pruning.plans import Plan
from scap.pruning.surgery import prune_network
from scap.reading import open_tensors
from scap.tensors import save_tensors

FORMAT = "scap-network-1"
FIELDS = ("architecture", "arguments", "plan", "example_shape", "extra")


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
    """Write weights, and how the network around them is rebuilt, to one safetensors file.

    `architecture` and `arguments` are those of scap.models.build.build_network (None for a network of one's own,
    which load_network needs a `build` for), `plan` is the one that `network` was pruned by, `example_shape`
    (N, channels, H, W) an input's, `extra` anything that JSON can hold. Raises ScapError where they disagree.
    """
    if plan:
        _check_saved_plan(network, plan, example_shape)
        plan = {layer: [int(channel) for channel in kept] for layer, kept in plan.items()}
    shape = None if example_shape is None else list(example_shape)
    values = (architecture, arguments or {}, plan, shape, extra or {})
    try:
        metadata = json.dumps(dict(zip(FIELDS, values, strict=True)))
    except TypeError as error:
        raise ScapError(f"{path}: arguments and extra must hold what JSON can hold ({error})") from error
    weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    save_tensors(Path(path), weights, {FORMAT: metadata})  # one key: several are written in random order


def _check_saved_plan(network: nn.Module, plan: Plan, example_shape: Sequence[int] | None) -> None:
    if example_shape is None:
        raise ScapError("plan: give `example_shape` too, rebuilding a pruned network needs it")
    convs = conv_layers(network)
    for layer, kept in plan.items():
        channels = convs[layer].out_channels if layer in convs else 0
        if channels != len(kept):
            raise ScapError(
                f"plan: layer {layer!r} keeps {len(kept)} channels, but the network's has {channels}; "
                "save the network that prune_network returned for this plan"
            )


def load_network(
    path: str | Path,
    build: Callable[[], nn.Module] | None = None,
    example: Tensor | None = None,
    *,
    run_code: bool = False,
) -> nn.Module:
    """The network of a file by save_network, in evaluation mode on the CPU, from that file alone.

    `build` makes the unpruned network where the file names no architecture; `example` replaces an input of
    the saved shape. `run_code`: whether a Python file that it names as its architecture (FILE.py:FUNCTION) may be run;
    say so of files you trust. Raises ScapError for a missing or damaged file and where network and weights do not fit.
    """
    metadata = read_metadata(path)
    network = _build(path, metadata, build, run_code)
    if metadata["plan"]:
        if example is None:
            example = torch.zeros(metadata["example_shape"]).to(next(network.parameters()))
        network = prune_network(network, metadata["plan"], example)
    return _with_weights(path, network)


def load_unpruned(path: str | Path, build: Callable[[], nn.Module] | None = None, *, run_code: bool = False) -> nn.Module:
    """As load_network, for a file without a plan, such as a baseline's.

    Steps that read baselines alone call this, for it knows nothing of surgery: a change there does not concern them.
    """
    metadata = read_metadata(path)
    if metadata["plan"]:
        raise ScapError(f"{path}: is a pruned network where an unpruned one is wanted; load it with load_network")
    return _with_weights(path, _build(path, metadata, build, run_code))


def _with_weights(path: str | Path, network: nn.Module) -> nn.Module:
    weights = _read_weights(path)
    _create_biases(network, weights)
    try:
        network.load_state_dict(weights, strict=True, assign=True)  # assign: in the precision that was saved
    except RuntimeError as error:
        raise ScapError(f"{path}: its weights do not fit the network built for it: {error}") from error
    return network.eval()


def _create_biases(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Compensation gives a bias to a layer that had none and no batch norm behind it: room for those in the file."""
    modules = dict(network.named_modules())
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        module = modules.get(layer)
        if kind == "bias" and isinstance(module, _ConvNd | nn.Linear) and module.bias is None and value.is_floating_point():
            module.bias = nn.Parameter(torch.empty_like(value))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """`architecture`, `arguments`, `plan`, `example_shape` and `extra` of a file by save_network."""
    with open_tensors(path) as file:
        if FORMAT not in file.metadata or not file.verified:
            raise DamagedFile(path, f"is no network saved by SCAP (its format is not {FORMAT!r}, or it has no checksum)")
        try:
            fields = json.loads(file.metadata[FORMAT])
            return {field: fields[field] for field in FIELDS}
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise DamagedFile(path, f"the file is damaged ({error!r})") from error


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return {name: file.file.get_tensor(name).clone() for name in file.names}


def _build(path: str | Path, metadata: dict[str, Any], build: Callable[[], nn.Module] | None, run_code: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced: spare the caller's stream
        return build() if build is not None else _build_stored(path, metadata, run_code)


def _build_stored(path: str | Path, metadata: dict[str, Any], run_code: bool) -> nn.Module:
    from scap.models.build import build_network

    way_out = "pass `build`, a function that makes the unpruned network"
    if metadata["architecture"] is None:
        raise ScapError(f"{path}: names no architecture; {way_out}")
    if own_function(metadata["architecture"]) and not run_code:
        asked = "which is not run unasked; give run_code=True where you trust the file"
        raise ScapError(f"{path}: its network is made by {metadata['architecture']}, {asked}, or {way_out}")
    try:
        return build_network(metadata["architecture"], **metadata["arguments"])
    except (ScapError, TypeError) as error:
        raise ScapError(f"{path}: cannot build its network ({error}); {way_out}") from error
