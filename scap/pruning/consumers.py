"""Which layers read a convolution's output channels, and in which columns of their weights.

Derived from the dependency graph of the surgery and checked by running the network: with the consumers' outputs held
fixed, changing channels of the producer may change nothing but the columns that are said to read them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scap.errors import ScapError
from scap.pruning.copies import copied, undisturbed
from scap.pruning.graph import Graph
from scap.pruning.products import layer_of
from scap.pruning.unfolding import Layer, groups_of, layer_at, samples, taps_of, weight_matrix


@dataclass(frozen=True, eq=False)
class Consumer:
    """One layer (one group of a grouped convolution) that reads a producer's channels."""

    name: str  # module path
    group: int
    channels: Tensor  # (K',) channels of the producer that it reads
    columns: Tensor  # (K', b) columns of weight_matrix(layer, group) that read each of them
    norm: str | None  # batch norm that alone reads the layer's output


@dataclass(frozen=True)
class Readers:
    """All that depends on the channels of one producer."""

    consumers: list[Consumer] = field(default_factory=list)
    outputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # layer -> (own output, the producer's channel)
    obstacle: str | None = None  # why the consumers cannot be told


@dataclass
class _Reads:
    inputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # layer -> (its input, the producer's channel)
    outputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    norms: dict[str, str | None] = field(default_factory=dict)
    obstacle: str | None = None


def find_consumers(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, Readers]:
    """The readers of each convolution of `layers` (module paths); `example` (1, channels, H, W) is an input.

    A reader that cannot be treated is an `obstacle`, in words. Raises ScapError for a layer that does not exist.
    """
    traced = copied(network).eval()
    for layer in layers:
        if not isinstance(dict(traced.named_modules()).get(layer), nn.Conv2d):
            raise ScapError(f"layer {layer!r} is no convolution of the network; scap.prunable_layers lists them")
    with undisturbed(traced):
        graph = Graph(traced, example, training=False)
        reads = {layer: _reads(graph, layer) for layer in layers}
    return {layer: _readers(traced, layer, reads[layer], example) for layer in layers}


def slopes(network: nn.Module, norm: str | None, outputs: int) -> Tensor:
    """(O,) |γ| / √(σ² + ε) of the batch norm that follows a layer; ones where none does."""
    parameter = next(network.parameters())
    slope = torch.ones(outputs, dtype=torch.float64, device=parameter.device)
    if norm is None:
        return slope
    module: Any = network.get_submodule(norm)
    if module.weight is not None:
        slope = module.weight.detach().double().abs()
    return slope / (module.running_var.double() + module.eps).sqrt()


def _reads(graph: Graph, layer: str) -> _Reads:
    """What the graph says; the one place that knows it."""
    if layer not in graph.used:
        return _Reads(obstacle="it is not used when the network runs")
    found = _Reads()
    own = graph.groups.of(graph.rows(layer).ids)
    channels: dict[int, list[int]] = defaultdict(list)
    for channel, group in enumerate(own.tolist()):
        channels[group].append(channel)
        if reason := graph.groups.obstacles.get(group):
            found.obstacle = f"its channels {reason}"
    for block, held, groups in graph.groups.holders(own.tolist()):
        name = layer_of(block.name)
        pairs = [(position, channel) for position in held.nonzero()[0].tolist() for channel in channels[groups[position]]]
        if block.kind == "rows":
            found.outputs[name] = pairs
        elif block.kind in ("columns", "grouped"):
            found.inputs[name], found.norms[name] = pairs, graph.norms.get(name)
            reader = graph.network.get_submodule(name)
            if not isinstance(reader, nn.Conv2d | nn.Linear):
                found.obstacle = f"{name!r} reads it, a {type(reader).__name__}"
    if not found.inputs and found.obstacle is None:
        found.obstacle = "no layer reads its channels"
    return found


def _readers(network: nn.Module, layer: str, reads: _Reads, example: Tensor) -> Readers:
    obstacle = reads.obstacle or _probe(network, layer, reads, example[:1])
    if obstacle:
        return Readers(outputs=reads.outputs, obstacle=obstacle)
    try:
        consumers = [consumer for name in reads.inputs for consumer in _by_group(network, name, reads)]
    except ValueError as error:
        return Readers(outputs=reads.outputs, obstacle=str(error))
    return Readers(consumers, reads.outputs)


def _by_group(network: nn.Module, name: str, reads: _Reads) -> Iterator[Consumer]:
    module = layer_at(network, name)
    taps, width = taps_of(module), weight_matrix(module).shape[1]
    columns: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, channel in sorted(reads.inputs[name]):
        group, start = divmod(position * taps, width)
        columns[group][channel] += range(start, start + taps)
    for group, blocks in columns.items():
        if len({len(block) for block in blocks.values()}) > 1:
            raise ValueError(f"{name!r} reads some of its channels more often than others")
        channels = sorted(blocks)
        table = torch.tensor([blocks[channel] for channel in channels])
        yield Consumer(name, group, torch.tensor(channels), table, reads.norms[name])


@contextmanager
def _hooked(network: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [network.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _probe(network: nn.Module, layer: str, reads: _Reads, image: Tensor) -> str | None:
    """Why the graph's word cannot be trusted, or None: every channel is changed in runs that tell it from each other one."""
    conv: Any = network.get_submodule(layer)
    numbers = torch.arange(conv.out_channels)
    bits = numbers[None] >> torch.arange(max(1, (conv.out_channels - 1).bit_length()))[:, None] & 1
    changed = torch.cat([bits, 1 - bits]).to(image.device)  # (runs, K): each two channels differ in some run, both ways
    images = image.expand(len(changed), *image.shape[1:]).to(next(network.parameters()))
    values: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            values[name].append(((args[0] if args else kwargs["input"]).clone(), output.clone()))
            return None if len(values[name]) == 1 else values[name][0][1].clone()

        return hook

    def change(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        return output + changed[:, :, None, None] * noise * (3 * output.abs().max() + 1)

    with _hooked(network, {name: keep(name) for name in reads.inputs}):
        before = tree_leaves(network(images))
        if any(len(values[name]) != 1 for name in reads.inputs):
            return f"{next(name for name in reads.inputs if len(values[name]) != 1)!r}, which reads it, runs more than once"
        with _hooked(network, {layer: change}):
            after = tree_leaves(network(images))
    for name, claimed in reads.inputs.items():
        if obstacle := _disagreement(layer_at(network, name), name, values[name], claimed, changed):
            return obstacle
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if isinstance(old, Tensor)]
    if any(_differs(old, new).any() for old, new in pairs):
        return f"other parts of the network read it than {', '.join(map(repr, reads.inputs))}"
    return None


def _disagreement(
    module: Layer, name: str, values: list[tuple[Tensor, Tensor]], pairs: list[tuple[int, int]], changed: Tensor
) -> str | None:
    (old, outputs), (new, _) = values
    if (obstacle := _other_than_its_weight(module, old, outputs)) is not None:
        return f"{name!r}, which reads it, {obstacle}"
    if isinstance(module, nn.Conv2d):
        old, new = old.movedim(1, -1), new.movedim(1, -1)
    differs = _differs(old, new).reshape(len(changed), -1, old.shape[-1]).any(1)
    allowed = torch.zeros_like(differs)
    positions, channels = torch.tensor(pairs, device=changed.device).unbind(1)
    allowed[:, positions] = changed[:, channels].bool()
    return f"{name!r} reads its channels in another order, or mixed" if (differs & ~allowed).any() else None


def _differs(old: Tensor, new: Tensor) -> Tensor:
    old, new = old.double(), new.double()
    return ~((new - old).abs() <= 1e-6 * old.abs().max())


def _other_than_its_weight(module: Layer, inputs: Tensor, outputs: Tensor) -> str | None:
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "has a weight that is computed from others: take the parametrisation or weight norm off first"
    unfolded, wanted = samples(module, inputs, outputs)
    parts = unfolded.double().chunk(groups_of(module), 1)
    found = torch.cat([part @ weight_matrix(module, group).T for group, part in enumerate(parts)], 1)
    if module.bias is not None:
        found = found + module.bias.double()
    tolerance = 1e-4 if module.weight.dtype in (torch.float32, torch.float64) else 3e-2
    close = (found - wanted).abs().max() <= tolerance * (1e-6 + wanted.abs().max())
    return None if close else "computes something else than weight · inputs + bias"
