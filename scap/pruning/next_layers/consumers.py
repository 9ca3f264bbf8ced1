"""Which layers read a convolution's output channels, and in which columns of their weights.

Derived from the dependency graph of the surgery and checked by running the network: with the consumers' outputs held
fixed, changing channels of the producer may change nothing but the columns that are said to read them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scap.errors import ScapError
from scap.models.inputs import device_and_precision, fitted, run
from scap.models.modes import evaluating
from scap.pruning.channels.graph import Graph
from scap.pruning.channels.ledger import Ids
from scap.pruning.channels.products import layer_of
from scap.pruning.copies import copied, first_line, undisturbed
from scap.pruning.next_layers.unfolding import Layer, groups_of, layer_at, samples, taps_of, weight_matrix

OTHER = "computes something else than weight · inputs + bias"


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
    units: Ids = field(default_factory=lambda: np.arange(0))  # (K,) what `channel` is here for each output channel

    def gone(self, kept: Iterable[int]) -> set[int]:
        """What is removed when the producer keeps these output channels."""
        return set(self.units.tolist()) - set(self.units[list(kept)].tolist())


@dataclass
class _Reads:
    units: Ids
    inputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # layer -> (its input, the producer's channel)
    outputs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    norms: dict[str, str | None] = field(default_factory=dict)
    obstacle: str | None = None


def find_consumers(network: nn.Module, layers: Sequence[str], example: Tensor, *, coupled: bool = False) -> dict[str, Readers]:
    """The readers of each convolution of `layers` (module paths); `example` (1, channels, H, W) is an input.

    With `coupled`, layers are those that groups are named by, and what is called a channel is a unit of the group: one or
    several channels of each of its layers, which only go together. Then layers within a group are no readers. A reader that
    cannot be treated is an `obstacle`, in words. Raises ScapError for a layer that does not exist.
    """
    traced = evaluating(copied(network))
    kinds = (nn.Conv2d, nn.Linear) if coupled else (nn.Conv2d,)
    for layer in layers:
        if not isinstance(dict(traced.named_modules()).get(layer), kinds):
            raise ScapError(f"layer {layer!r} is no convolution of the network; scap.prunable_layers lists them")
    example = fitted(example[:1], *device_and_precision(traced))
    with undisturbed(traced):
        graph = Graph(traced, example, training=False, coupled=coupled)
        reads = {layer: _reads(graph, layer) for layer in layers}
        sound = {layer: each for layer, each in reads.items() if each.obstacle is None}
        obstacles = _contradictions(traced, sound, example)
    return {layer: _readers(traced, each, each.obstacle or obstacles.get(layer)) for layer, each in reads.items()}


def slopes(network: nn.Module, norm: str | None, outputs: int) -> Tensor:
    """(O,) |γ| / √(σ² + ε) of the batch norm that follows a layer; ones where none does. ScapError where it is not finite."""
    slope = torch.ones(outputs, dtype=torch.float64, device=device_and_precision(network)[0])
    if norm is None:
        return slope
    module: Any = network.get_submodule(norm)
    if module.weight is not None:
        slope = module.weight.detach().double().abs()
    slope = slope / (module.running_var.double() + module.eps).sqrt()
    if not slope.isfinite().all():
        raise ScapError(f"batch norm {norm!r} has weights or variances that are not finite: the network has diverged")
    return slope


def _reads(graph: Graph, layer: str) -> _Reads:
    """What the graph says; the one place that knows it."""
    if layer not in graph.used:
        module: Any = graph.network.get_submodule(layer)
        return _Reads(np.arange(len(module.weight)), obstacle="it is not used when the network runs")
    own = graph.groups.of(graph.rows(layer).ids)
    found = _Reads(graph.units(layer))
    channels: dict[int, list[int]] = defaultdict(list)
    for channel, group in dict.fromkeys(zip(found.units.tolist(), own.tolist(), strict=True)):
        channels[group].append(channel)
        if reason := graph.groups.obstacles.get(group) or graph.groups.normalised.get(group):
            found.obstacle = f"its channels {reason}"
    for block, held, groups in graph.groups.holders(own.tolist()):
        name = layer_of(block.name)
        readers = {position: channels[groups[position]] for position in held.nonzero()[0].tolist()}
        if block.kind == "rows":
            found.outputs[name] = [(position, channel) for position, read in readers.items() for channel in read]
        elif block.kind == "columns" or (block.kind == "grouped" and not graph.coupled):
            module = dict(graph.network.named_modules()).get(name) if name else None
            if module is None:
                found.obstacle = found.obstacle or f"{block.name!r} reads it, a parameter of the network's own"
            elif not isinstance(module, nn.Conv2d | nn.Linear):
                found.obstacle = found.obstacle or f"{name!r} reads it, a {type(module).__name__}"
            elif words := _shared(graph.network, name):
                found.obstacle = found.obstacle or words
            elif any(len(read) > 1 for read in readers.values()):
                found.obstacle = found.obstacle or f"{name!r} reads several of its channels in one"
            else:
                found.inputs[name] = [(position, read[0]) for position, read in readers.items()]
                found.norms[name] = graph.norms.get(name)
    if not found.inputs and found.obstacle is None:
        found.obstacle = "no layer reads its channels"
    return found


def _shared(network: nn.Module, name: str) -> str | None:
    """Whose weight or bias a layer's own is, too: what is changed for the one would change for the other."""
    own = {id(parameter) for parameter in network.get_submodule(name).parameters(recurse=False)}
    named = network.named_parameters(remove_duplicate=False)
    others = [path for path, parameter in named if id(parameter) in own and path.rpartition(".")[0] != name]
    return f"{name!r}, which reads it, shares {others[0]!r}" if others else None


def _readers(network: nn.Module, reads: _Reads, obstacle: str | None) -> Readers:
    if obstacle is not None:
        return Readers(outputs=reads.outputs, obstacle=obstacle, units=reads.units)
    try:
        consumers = [consumer for name in reads.inputs for consumer in _by_group(network, name, reads)]
    except ValueError as error:
        return Readers(outputs=reads.outputs, obstacle=str(error), units=reads.units)
    return Readers(consumers, reads.outputs, units=reads.units)


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
        table = torch.tensor([blocks[channel] for channel in channels], device="cpu")
        yield Consumer(name, group, torch.tensor(channels, device="cpu"), table, reads.norms[name])


@contextmanager
def _hooked(network: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [network.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _contradictions(network: nn.Module, reads: dict[str, _Reads], image: Tensor) -> dict[str, str]:
    """Layer -> why the graph's word on it is not believed; all layers are tried at once, then halves where that fails."""
    obstacle = _probe(network, reads, image) if reads else None
    if obstacle is None:
        return {}
    layers = list(reads)
    if len(layers) == 1:
        return {layers[0]: obstacle}
    halves = (layers[: len(layers) // 2], layers[len(layers) // 2 :])
    found = [_contradictions(network, {layer: reads[layer] for layer in half}, image) for half in halves]
    return found[0] | found[1] or dict.fromkeys(layers, obstacle)


def _probe(network: nn.Module, reads: dict[str, _Reads], image: Tensor) -> str | None:
    """What is wrong with the graph's word, or None.

    In every run half of each layer's channels are changed, so that any two differ in some run, both ways round, and what
    their readers give is held fixed: only inputs that are said to read a changed channel may differ.
    """
    try:
        return _contradiction(network, reads, image)
    except Exception as error:  # the user's forward and the layers that it calls may raise anything
        readers = ", ".join(sorted({repr(name) for each in reads.values() for name in each.inputs}))
        return f"{readers}, which read it, cannot be followed: {first_line(error)}"


def _contradiction(network: nn.Module, reads: dict[str, _Reads], image: Tensor) -> str | None:
    runs = max(1, max(int(each.units.max()) for each in reads.values()).bit_length())
    kept: dict[str, tuple[Tensor, Tensor]] = {}  # what each reader reads and gives when nothing is changed
    calls: Counter[str] = Counter()
    now: dict[str, Tensor] = {}
    changing = False

    def hold(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            calls[name] += 1
            now[name] = (args[0] if args else kwargs["input"]).clone()
            if changing:
                return kept[name][1].clone()
            kept[name] = now[name], output.clone()
            return None

        return hook

    readers = {name for each in reads.values() for name in each.inputs}
    with _hooked(network, {name: hold(name) for name in readers}):
        before = tree_leaves(run(network, image))
        if wrong := next((name for name in readers if calls[name] != 1), None):
            return f"{wrong!r}, which reads it, {'runs more than once' if calls[wrong] else 'is not called as a module'}"
        for name in readers:
            if obstacle := _other_than_its_weight(layer_at(network, name), *kept[name]):
                return f"{name!r}, which reads it, {obstacle}"
        changing = True
        for bit, flipped in product(range(runs), (False, True)):
            with _hooked(network, {layer: _change(each.units, bit, flipped) for layer, each in reads.items()}):
                after = tree_leaves(run(network, image))
            for name in readers:
                allowed = _allowed(name, reads, bit, flipped)
                if not _only(layer_at(network, name), kept[name][0], now[name], allowed):
                    return f"{name!r} reads its channels in another order, or mixed"
            leaves = [(old, new) for old, new in zip(before, after, strict=True) if isinstance(old, Tensor)]
            if any(_differs(old, new).any() for old, new in leaves):
                return f"other parts of the network read it than {', '.join(sorted(map(repr, readers)))}"
    return None


def _chosen(channel: int, bit: int, flipped: bool) -> bool:
    return bool(channel >> bit & 1) != flipped


def _change(units: Ids, bit: int, flipped: bool) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(bit), device="cpu").to(output)
        chosen = torch.tensor([_chosen(channel, bit, flipped) for channel in units.tolist()], device="cpu").to(output)
        chosen = chosen if isinstance(module, nn.Linear) else chosen[:, None, None]
        return output + chosen * noise * (3 * output.abs().max() + 1)

    return hook


def _allowed(name: str, reads: dict[str, _Reads], bit: int, flipped: bool) -> list[int]:
    """Inputs of the layer that may change."""
    pairs = (pair for each in reads.values() for pair in each.inputs.get(name, []))
    return [position for position, channel in pairs if _chosen(channel, bit, flipped)]


def _only(layer: Layer, old: Tensor, new: Tensor, allowed: list[int]) -> bool:
    if isinstance(layer, nn.Conv2d):
        old, new = old.movedim(1, -1), new.movedim(1, -1)
    differs = _differs(old, new).reshape(-1, old.shape[-1]).any(0)
    differs[allowed] = False
    return not differs.any()


def _differs(old: Tensor, new: Tensor) -> Tensor:
    old, new = old.double(), new.double()
    return ~((new - old).abs() <= 1e-6 * old.abs().max())


def _other_than_its_weight(module: Layer, inputs: Tensor, outputs: Tensor) -> str | None:
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "has a weight that is computed from others: take the parametrisation or weight norm off first"
    if not (inputs.isfinite().all() and outputs.isfinite().all()):
        return "reads or gives NaN or infinity: the network has diverged"
    unfolded, wanted = samples(module, inputs, outputs)
    if len(unfolded) != len(wanted):
        return OTHER
    parts = unfolded.double().chunk(groups_of(module), 1)
    found = torch.cat([part @ weight_matrix(module, group).T for group, part in enumerate(parts)], 1)
    if module.bias is not None:
        found = found + module.bias.double()
    tolerance = 1e-4 if module.weight.dtype in (torch.float32, torch.float64) else 3e-2
    close = (found - wanted).abs().max() <= tolerance * (1e-6 + wanted.abs().max())
    return None if close else OTHER
