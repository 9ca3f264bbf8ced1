"""Structural surgery: removes output channels of convolutions and stores the smaller network in one file."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scap.activations import conv_layers
from scap.counting import count_operations
from scap.errors import ScapError
from scap.layers import Plan
from scap.streaming import save_tensors

FORMAT = "scap-network-1"
FIELDS = ("architecture", "arguments", "plan", "example_shape", "extra")


def prunable_layers(network: nn.Module, example: Tensor) -> list[str]:
    """Convolutions whose output channels can be removed alone, by module path, in the order of the network.

    Left out are those coupled with another convolution's outputs (residual streams, depthwise), grouped ones,
    those whose channels are normalised together (group and layer norm) or are the network's own outputs (a
    classifier), and unused ones. `example` (N, channels, H, W) is an input; `network` is not altered.
    """
    traced = copy.deepcopy(network)
    with _dependency_graph(traced, example) as graph:
        return [name for name, conv in conv_layers(traced).items() if _obstacle(graph, conv) is None]


def prune_network(network: nn.Module, plan: Plan, example: Tensor) -> nn.Module:
    """A copy of `network` in which each layer of `plan` holds only the channels that the plan keeps.

    What follows (batch norm, the next layers' inputs) shrinks alike; layers outside the plan keep all their
    channels, and a plan that keeps all leaves the outputs bit-equal (law 7). `example` (N, channels, H, W) is
    an input. Raises ScapError for an unknown, coupled or emptied layer and for channels that do not exist.
    """
    pruned = copy.deepcopy(network)
    convs = conv_layers(pruned)
    _check_plan(plan, convs)
    with _dependency_graph(pruned, example) as graph:
        before = _output_shape(pruned, example)
        for layer, kept in plan.items():
            if obstacle := _obstacle(graph, convs[layer]):
                raise ScapError(
                    f"plan: layer {layer!r} cannot be pruned alone: {obstacle}. Leave it out of the plan "
                    "(scap.pruning.prunable_layers lists those that can)"
                )
            if removed := sorted(set(range(convs[layer].out_channels)) - set(kept)):
                _group(graph, convs[layer], removed).prune()
        _check_output(pruned, example, before)
    return pruned


def uniform_widths(network: nn.Module, plan: Plan, example: Tensor, multiple: int = 1) -> dict[str, int]:
    """Channels per layer of `plan` when all keep the same share: the largest that needs no more MACs than the plan.

    Widths are rounded down to a `multiple`, at least one of it, at most the whole layer.
    """
    budget = count_operations(prune_network(network, plan, example), example)["macs"]
    totals = {layer: conv.out_channels for layer, conv in conv_layers(network).items() if layer in plan}
    if all(len(kept) == totals[layer] for layer, kept in plan.items()):
        return totals

    def widths(share: float) -> dict[str, int]:
        rounded = {layer: int(share * total) // multiple * multiple for layer, total in totals.items()}
        return {layer: min(total, max(multiple, rounded[layer])) for layer, total in totals.items()}

    low, high = 0.0, 1.0
    for _ in range(10):  # to a thousandth of the width
        middle = (low + high) / 2
        trial = prune_network(network, {layer: list(range(n)) for layer, n in widths(middle).items()}, example)
        low, high = (middle, high) if count_operations(trial, example)["macs"] <= budget else (low, middle)
    return widths(low)


def _check_output(pruned: nn.Module, example: Tensor, shape: torch.Size | None) -> None:
    try:
        fits = _output_shape(pruned, example) == shape
    except ScapError as error:
        raise ScapError(f"plan: pruned, {error}. Its `forward` may not name numbers of channels") from error
    if not fits:
        raise ScapError("plan: pruning changes the shape of the network's output; leave its last layers out")


def _check_plan(plan: Plan, convs: dict[str, nn.Conv2d]) -> None:
    for layer, kept in plan.items():
        if layer not in convs:
            known = ", ".join(convs)
            raise ScapError(f"plan: layer {layer!r} is no ungrouped convolution; choose from {known}")
        channels = convs[layer].out_channels
        if not len(kept):
            raise ScapError(f"plan: layer {layer!r} keeps no channel; keep one at least, or leave it out")
        if min(kept) < 0 or max(kept) >= channels:
            asked = f"{min(kept)}..{max(kept)}"
            raise ScapError(f"plan: layer {layer!r} has channels 0..{channels - 1}, but keeps {asked}")
        if any(left >= right for left, right in pairwise(kept)):
            raise ScapError(f"plan: the channels kept of layer {layer!r} must be strictly increasing")


@contextmanager
def _dependency_graph(network: nn.Module, example: Tensor) -> Iterator[Any]:
    """Torch-Pruning's graph; it needs gradients and evaluation mode, and both are put back afterwards."""
    training = {module: module.training for module in network.modules()}
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    network.eval().requires_grad_(True)
    _output_shape(network, example)  # an error of the user's forward is clearer here than inside the tracer
    with torch.enable_grad():
        graph = _torch_pruning().DependencyGraph()
        yield graph.build_dependency(network, (example,), verbose=False)
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    for module, mode in training.items():
        module.training = mode


def _obstacle(graph: Any, conv: nn.Conv2d) -> str | None:
    """Why the output channels of `conv` cannot be removed alone, or None."""
    if conv not in graph.module2node:
        return "it is not used when the network runs"
    for dependency, _ in _group(graph, conv, list(range(conv.out_channels))):
        node, module = dependency.target, dependency.target.module
        as_output = graph.is_out_channel_pruning_fn(dependency.handler)
        if as_output and not node.outputs:
            return "its channels are outputs of the network"
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            return f"its channels are normalised together by {_name(graph, module)!r}"
        if isinstance(module, _ConvNd) and module is not conv and (as_output or module.groups > 1):
            return f"it shares its channels with {_name(graph, module)!r}"
    return None


def _group(graph: Any, conv: nn.Conv2d, channels: list[int]) -> Any:
    """Everything that goes when the output `channels` of `conv` go."""
    return graph.get_pruning_group(conv, _torch_pruning().prune_conv_out_channels, channels)


def _torch_pruning() -> Any:
    import torch_pruning  # type: ignore[import-untyped]

    return torch_pruning


def _name(graph: Any, module: nn.Module) -> str:
    return next(name for name, candidate in graph.model.named_modules() if candidate is module)


@torch.no_grad()
def _output_shape(network: nn.Module, example: Tensor) -> torch.Size | None:
    try:
        output = network(example)
    except RuntimeError as error:
        shape = tuple(example.shape)
        raise ScapError(f"the network does not run on an example of shape {shape}: {error}") from error
    return output.shape if isinstance(output, Tensor) else None


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

    `architecture` and `arguments` are those of scap.networks.build_network (None for a network of one's own,
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


def load_network(path: str | Path, build: Callable[[], nn.Module] | None = None, example: Tensor | None = None) -> nn.Module:
    """The network of a file by save_network, in evaluation mode on the CPU, from that file alone.

    `build` makes the unpruned network where the file names no architecture; `example` replaces an input of
    the saved shape. Raises ScapError for a missing or damaged file and where network and weights do not fit.
    """
    metadata, weights = read_metadata(path), _read_weights(path)
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced: spare the caller's stream
        network = build() if build is not None else _build_stored(path, metadata)
    if metadata["plan"]:
        if example is None:
            example = torch.zeros(metadata["example_shape"]).to(next(network.parameters()))
        network = prune_network(network, metadata["plan"], example)
    try:
        network.load_state_dict(weights, strict=True, assign=True)  # assign: in the precision that was saved
    except RuntimeError as error:
        raise ScapError(f"{path}: its weights do not fit the network built for it: {error}") from error
    return network.eval()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """`architecture`, `arguments`, `plan`, `example_shape` and `extra` of a file by save_network."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise ScapError(f"{path}: is no network saved by SCAP (its format is not {FORMAT!r})")
    try:
        fields = json.loads(metadata[FORMAT])
        return {field: fields[field] for field in FIELDS}
    except (KeyError, json.JSONDecodeError) as error:
        raise ScapError(f"{path}: the file is damaged ({error!r}); make it again") from error


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise ScapError(f"{path}: there is no such file; make it first") from error
    except (SafetensorError, OSError) as error:
        raise ScapError(f"{path}: the file is damaged, or no safetensors ({error}); make it again") from error


def _build_stored(path: str | Path, metadata: dict[str, Any]) -> nn.Module:
    from scap.networks import build_network

    way_out = "pass `build`, a function that makes the unpruned network"
    if metadata["architecture"] is None:
        raise ScapError(f"{path}: names no architecture; {way_out}")
    try:
        return build_network(metadata["architecture"], **metadata["arguments"])
    except (ScapError, TypeError) as error:
        raise ScapError(f"{path}: cannot build its network ({error}); {way_out}") from error
