"""What a pruned network keeps of each layer that reads removed channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scap.errors import ScapError
from scap.pruning.next_layers.consumers import Consumer, Readers, slopes
from scap.pruning.next_layers.least_squares import Target
from scap.pruning.next_layers.moments import stream
from scap.pruning.next_layers.unfolding import Layer, groups_of, layer_at, taps_of, weight_matrix


@dataclass(frozen=True)
class Cut:
    """A consumer that reads removed channels, with a target of least squares for each of its groups."""

    name: str
    layers: list[str]  # producers whose channels were removed
    norm: str | None  # batch norm that takes a constant up
    targets: list[Target]
    outputs: Tensor  # (O',) its own outputs that stay


def find_cuts(
    network: nn.Module, pruned: nn.Module, readers: dict[str, Readers], removed: dict[str, set[int]], image: Tensor
) -> tuple[list[Cut], dict[str, str]]:
    """The cuts in the order in which the layers run, and consumers that must stay as they are: why.

    `removed`: layer -> channels that are gone. Raises ScapError where `pruned` is not what the plan makes of `network`.
    """
    names = {consumer.name for found in readers.values() for consumer in found.consumers}
    order: list[str] = []
    if names:
        stream(network, image, names, lambda name, *_: order.append(name), 1)
    untold = [layer for layer, found in readers.items() if found.obstacle]
    cuts, left = [], {}
    for name in order:
        cut = _cut(network, name, readers, removed)
        if _fits(layer_at(pruned, name), cut.targets):
            cuts.append(cut)
        elif untold:
            left[name] = f"it reads channels of {', '.join(map(repr, untold))}, too, whose readers cannot be told"
        else:
            raise ScapError(
                f"layer {name!r} of the pruned network does not hold the weights that the plan keeps; "
                "pass the network that prune_network has just made from this network by this plan"
            )
    return cuts, left


def _cut(network: nn.Module, name: str, readers: dict[str, Readers], removed: dict[str, set[int]]) -> Cut:
    layer = layer_at(network, name)
    found = [(by, consumer) for by in readers for consumer in readers[by].consumers if consumer.name == name]
    outputs = _outputs_kept(name, len(layer.weight), readers, removed)
    norm = found[0][1].norm
    scale, bias = slopes(network, norm, len(layer.weight)), torch.zeros(len(layer.weight), dtype=torch.float64, device="cpu")
    bias = bias.to(scale) if layer.bias is None else layer.bias.detach().double()
    targets = []
    for group, rows in enumerate(torch.arange(len(layer.weight), device="cpu").chunk(groups_of(layer))):
        consumers = [(consumer, removed[by]) for by, consumer in found if consumer.group == group]
        matrix = weight_matrix(layer, group)
        kept, old, new = _columns(layer, matrix.shape[1], consumers)
        stay = rows[torch.isin(rows, outputs)]
        targets.append(Target(matrix[stay - rows[0]], bias[stay], kept, old, new, scale[stay]))
    layers = list(dict.fromkeys(by for by, consumer in found if removed[by] & set(consumer.channels.tolist())))
    return Cut(name, layers, norm, targets, outputs)


def _outputs_kept(name: str, outputs: int, readers: dict[str, Readers], removed: dict[str, set[int]]) -> Tensor:
    pairs = ((own, channel, by) for by, found in readers.items() for own, channel in found.outputs.get(name, []))
    gone = {own for own, channel, by in pairs if channel in removed[by]}
    return torch.tensor([output for output in range(outputs) if output not in gone], device="cpu")


def _columns(layer: Layer, width: int, consumers: list[tuple[Consumer, set[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Columns that stay, columns of each original channel, and of each channel that stays (numbered among those that stay)."""
    stays = torch.ones(width, dtype=torch.bool, device="cpu")
    for consumer, gone in consumers:
        stays[consumer.columns[torch.isin(consumer.channels, torch.tensor(sorted(gone), device="cpu"))].flatten()] = False
    tables = [consumer.columns for consumer, _ in consumers]
    whole = bool(tables) and len({table.shape[1] for table in tables}) == 1 and sum(map(torch.Tensor.numel, tables)) == width
    natural = torch.arange(width, device="cpu").view(-1, taps_of(layer))
    old = torch.cat(tables) if whole and isinstance(layer, nn.Linear) else natural
    new = (stays.cumsum(0) - 1)[old[stays[old].all(1)]]
    return stays.nonzero().flatten(), old, new


def _fits(layer: Layer, targets: list[Target]) -> bool:
    """Whether a layer of the pruned network holds the weights that stay."""
    expected = torch.cat([target.weights[:, target.kept] for target in targets])
    weights = layer.weight.detach().double().flatten(1)
    return weights.shape == expected.shape and torch.equal(weights, expected)
