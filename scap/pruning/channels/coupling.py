"""Groups of layers whose channels must go together: residual streams, depthwise and grouped convolutions, gates.

A *unit* is what goes at once: one channel of every layer of a group, or several of each where a grouped convolution stands
between, which loses whole groups. Layers that share a unit, directly or over others, are one group. Its name is the first
layer of the network that holds all of its units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scap.pruning.channels.ledger import Block, Groups, Ids, Ledger
from scap.pruning.channels.products import layer_of


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that lose channels together; `name` is one of them, None where none holds all units."""

    name: str | None
    members: dict[str, Ids]  # layer, in the order of the network -> the unit that each of its output channels belongs to
    classes: Ids  # (U,) what the ledger's links call each unit

    def keeping(self, layer: str, kept: Sequence[int]) -> dict[str, list[int]]:
        """Layer -> channels that stay when one keeps `kept`: a unit goes only where none of its channels is kept."""
        units = np.unique(self.members[layer][list(kept)])
        return {other: np.flatnonzero(np.isin(own, units)).tolist() for other, own in self.members.items()}


def link_grouped(ledger: Ledger, weights: dict[str, Tensor]) -> None:
    """Inputs and outputs of each group of a grouped convolution go together; transposed ones are left as they are."""
    for block in list(ledger.of("grouped")):
        rows = ledger.blocks.get(("rows", block.name, 0))
        if rows is None or block.dim != 1:
            ledger.forbid(torch.from_numpy(block.ids), f"are read by the grouped convolution {layer_of(block.name)!r}")
            continue
        groups = block.size // weights[block.name].size(1)
        for ids in (block.ids.reshape(groups, -1), rows.ids.reshape(groups, -1)):
            ledger.link(torch.from_numpy(ids), torch.from_numpy(block.ids.reshape(groups, -1)[:, :1].repeat(ids.shape[1], 1)))


def forbid_both_ways(ledger: Ledger) -> None:
    """A weight that is used as it is and transposed has output channels along both of its dimensions; they stay."""
    rows: dict[str, Block] = {}
    for block in ledger.of("rows"):
        if (first := rows.setdefault(block.name, block)) is not block:
            for each in (first, block):
                ledger.forbid(
                    torch.from_numpy(each.ids), f"are those of {layer_of(block.name)!r}, whose weight is used transposed, too"
                )


def member(weight: str) -> str:
    """What a layer is called by the name of its weight; a weight of another name by its own."""
    layer, _, name = weight.rpartition(".")
    return layer if name == "weight" else weight


def groups_of(groups: Groups, order: dict[str, int]) -> list[Group]:
    """All groups, in the order of their first layers; `order`: layer -> its place in the network."""
    classes: dict[str, Ids] = {}
    for block in groups.ledger.of("rows"):
        classes.setdefault(member(block.name), groups.of(block.ids))
    layers = sorted(classes, key=lambda layer: order.get(layer, len(order)))
    holders: dict[int, list[str]] = {}
    for layer in layers:
        for found in np.unique(classes[layer]).tolist():
            holders.setdefault(found, []).append(layer)
    found, seen = [], set[str]()
    for layer in layers:
        if layer not in seen:
            members = _together(layer, classes, holders)
            seen |= members
            found.append(_group([other for other in layers if other in members], classes))
    return found


def _together(layer: str, classes: dict[str, Ids], holders: dict[int, list[str]]) -> set[str]:
    """All layers that share units with one, directly or over others."""
    members, waiting = {layer}, [layer]
    while waiting:
        for found in np.unique(classes[waiting.pop()]).tolist():
            new = set(holders[found]) - members
            members |= new
            waiting += new
    return members


def _group(layers: list[str], classes: dict[str, Ids]) -> Group:
    every = np.unique(np.concatenate([classes[layer] for layer in layers]))
    name = next((layer for layer in layers if len(np.unique(classes[layer])) == len(every)), None)
    if name is not None:  # units in the order in which the named layer has them
        every = classes[name][np.sort(np.unique(classes[name], return_index=True)[1])]
    place = {found: unit for unit, found in enumerate(every.tolist())}
    members = {layer: np.array([place[found] for found in classes[layer].tolist()]) for layer in layers}
    return Group(name, members, every)
