"""Which channels, weights and buffers can only be removed together: names for them, and what links them.

Everything that surgery may remove has a number, its id. Ids come in blocks:

    rows      output channels of one convolution or linear layer: slices of its weight
    columns   input channels of one: slices of its weight along the other dimension
    grouped   input channels of a grouped convolution: parts of slices, so that surgery leaves them alone
    elements  the entries of a parameter or buffer that is used in other ways (batch norms, scales, positions)
    fixed     one id for something of a size that surgery cannot change (the network's input, the result of a product)

A link says that two ids go together: the channels of a sum, a channel and its batch norm's entries, a channel and what
reads it. What is linked, directly or over others, is one group.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
ELEMENTS = 2**30  # ids from here on are elements: where a channel meets one, the channel's id (the smaller) stands for both

FEW = 4096  # pairs of which duplicates cost nothing


@dataclass(frozen=True)
class Block:
    """Consecutive ids: those of a slice each along dimension `dim` of tensor `name`, or of all its entries (dim None)."""

    kind: str
    name: str  # of the parameter or buffer; fixed: what it is, in words
    dim: int | None
    start: int
    size: int

    @property
    def ids(self) -> Ids:
        """All of them."""
        return np.arange(self.start, self.start + self.size)


@dataclass
class Ledger:
    """Blocks of ids, links between ids, and obstacles: why a channel cannot be removed at all.

    With `coupled`, layer norms do not stand in the way: of what stays they take the statistics again. `normalised` has the
    channels that they read.
    """

    coupled: bool = False
    blocks: dict[tuple[str, str, int | None], Block] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    links: list[Ids] = field(default_factory=list)
    obstacles: list[tuple[Ids, str]] = field(default_factory=list)
    normalised: list[tuple[Ids, str]] = field(default_factory=list)
    _next: int = 1  # 0: nothing that has a number
    _next_element: int = ELEMENTS

    def block(self, kind: str, name: str, dim: int | None = None, size: int = 1) -> Block:
        """The block of these names, made at its first use."""
        key = (kind, name, dim)
        if key not in self.blocks:
            start = self._next_element if kind == "elements" else self._next
            self.blocks[key] = Block(kind, name, dim, start, size)
            if kind == "elements":
                self._next_element += size
            else:
                self._next += size
            if kind == "fixed":
                self.fixed.add(start)
        return self.blocks[key]

    def of(self, kind: str) -> Iterator[Block]:
        """All blocks of one kind."""
        return (block for block in self.blocks.values() if block.kind == kind)

    def link(self, first: Tensor, second: Tensor) -> None:
        """The ids at equal places of both go together (0: no id, no link)."""
        one, other = first.flatten().long(), second.flatten().long()
        keep = (one > 0) & (other > 0) & (one != other)
        keys = (one * 2**31 + other)[keep]  # one number a pair: duplicates are found faster
        if len(keys):
            pairs = (torch.unique(keys) if len(keys) > FEW else keys).cpu().numpy()
            self.links.append(np.stack([pairs >> 31, pairs & (2**31 - 1)], 1))

    def forbid(self, ids: Tensor, reason: str) -> None:
        """The channels among `ids` cannot be removed; `reason` completes "its channels ..."."""
        if len(channels := _channels(ids)):
            self.obstacles.append((channels, reason))

    def note_norm(self, ids: Tensor, words: str) -> None:
        """The channels among `ids` are normalised together; `words` completes "its channels ..."."""
        if len(channels := _channels(ids)):
            self.normalised.append((channels, words))


def _channels(ids: Tensor) -> Ids:
    found = torch.unique(ids)
    return found[(found > 0) & (found < ELEMENTS)].cpu().numpy().astype(np.int64)


class Groups:
    """The groups that a ledger's links make: each has the smallest of its ids as name."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        links = np.concatenate(ledger.links) if ledger.links else np.zeros((0, 2), np.int64)
        self._ids, pairs = np.unique(links, return_inverse=True)
        self._groups = self._ids[_smallest(pairs.reshape(-1, 2), len(self._ids))] if len(self._ids) else self._ids

    def of(self, ids: Ids) -> Ids:
        """The group of each id; an id without links is a group of its own."""
        if not len(self._ids):
            return ids
        places = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._groups[places], ids)

    def linked(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each id goes with another one."""
        return _among(ids, self._ids)

    @cached_property
    def obstacles(self) -> dict[int, str]:
        """Why a group cannot be removed, by group: the first reason, those of attention before others."""
        found: dict[int, str] = {}
        for ids, reason in sorted(self.ledger.obstacles, key=lambda each: "attention heads" not in each[1]):
            for group in self.of(ids):
                found.setdefault(int(group), reason)
        for block in self.ledger.of("fixed"):
            found.setdefault(int(self.of(block.ids)[0]), f"are combined with {block.name}")
        return found

    @cached_property
    def normalised(self) -> dict[int, str]:
        """Group -> the layer norm that reads it together with others."""
        return {int(group): words for ids, words in self.ledger.normalised for group in self.of(ids)}

    @cached_property
    def grouped(self) -> dict[int, str]:
        """Group -> the weight of a grouped convolution that reads it."""
        return {int(group): block.name for block in self.ledger.of("grouped") for group in self.of(block.ids)}

    @cached_property
    def read(self) -> set[int]:
        """Groups that a convolution or matrix product reads."""
        return {
            group for kind in ("columns", "grouped") for block in self.ledger.of(kind) for group in self.of(block.ids).tolist()
        }

    @cached_property
    def members(self) -> dict[int, list[tuple[Block, int]]]:
        """Group -> the output channels in it, as block of rows and position."""
        found: dict[int, list[tuple[Block, int]]] = {}
        for block in self.ledger.of("rows"):
            for position, group in enumerate(self.of(block.ids)):
                found.setdefault(int(group), []).append((block, position))
        return found

    def holders(self, groups: Iterable[int]) -> Iterator[tuple[Block, NDArray[np.bool_], Ids]]:
        """Each block that holds some of `groups`: the block, where they are in it, and the groups of all its ids."""
        wanted = np.unique(np.fromiter(groups, np.int64))
        for block, own in self._by_block.items():
            if (held := _among(own, wanted)).any():
                yield block, held, own

    @cached_property
    def _by_block(self) -> dict[Block, Ids]:
        return {block: self.of(block.ids) for block in self.ledger.blocks.values()}


def _among(ids: Ids, ordered: Ids) -> NDArray[np.bool_]:
    """Whether each id is one of `ordered`, which increase."""
    if not len(ordered):
        return np.zeros(len(ids), bool)
    return ordered[np.searchsorted(ordered, ids).clip(max=len(ordered) - 1)] == ids


def _smallest(pairs: Ids, size: int) -> Ids:
    """The smallest number that each of 0..size-1 is linked with over any number of pairs."""
    lowest = np.arange(size)
    while True:
        before = lowest.copy()
        least = lowest[pairs].min(1)
        for side in (0, 1):
            np.minimum.at(lowest, lowest[pairs[:, side]], least)
            np.minimum.at(lowest, pairs[:, side], least)
        lowest = lowest[lowest]
        if (lowest == before).all():
            return lowest
