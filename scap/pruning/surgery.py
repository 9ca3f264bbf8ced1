"""Structural surgery: removes output channels of convolutions and everything that reads them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scap.errors import ScapError
from scap.models.layers import conv_layers
from scap.pruning.plans import Plan


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
                    "(scap.pruning.surgery.prunable_layers lists those that can)"
                )
            if removed := sorted(set(range(convs[layer].out_channels)) - set(kept)):
                _group(graph, convs[layer], removed).prune()
        _check_output(pruned, example, before)
    return pruned


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
