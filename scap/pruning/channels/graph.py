"""Which convolutions of a network can lose output channels, what must go with these, and why others cannot."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from scap.errors import ScapError
from scap.models.inputs import Example, mapped, tensors_of
from scap.models.layers import holds_weight
from scap.pruning.channels.coupling import Group, forbid_both_ways, groups_of, link_grouped
from scap.pruning.channels.ledger import Block, Groups, Ids, Ledger
from scap.pruning.channels.products import layer_of
from scap.pruning.channels.tracing import Tracing
from scap.pruning.copies import first_line, skeleton
from scap.pruning.plans import Plan

Slices = dict[tuple[str, int], Ids]  # parameter or buffer, dimension -> positions that stay


class Graph:
    """What the channels of a network (in evaluation mode) depend on, from one run of it and one in training mode.

    `groups` are the sets of slices that can only be removed together; they are found for all layers, whether they can be
    pruned alone or not. Branches that only training runs count like all others (not with `training` off). `norms`: layer ->
    the batch norm that alone reads its outputs. With `coupled`, groups of layers are what is removed: grouped convolutions
    lose whole groups, linear layers are pruned too.
    """

    def __init__(self, network: nn.Module, example: Example, training: bool = True, coupled: bool = False) -> None:
        self.network, self.ledger, self.coupled = network, Ledger(coupled), coupled
        kinds = (_ConvNd, nn.Linear) if coupled else (_ConvNd,)
        self.order = {name: place for place, (name, _) in enumerate(network.named_modules())}
        layers = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
        self.layers = {name: module for name, module in layers.items() if holds_weight(module)}
        self.example = example
        self.tensors = dict(network.named_parameters()) | dict(network.named_buffers())
        evaluated = Tracing(network, self.ledger)
        try:
            evaluated.follow(network, example)
        except ScapError:
            raise
        except Exception as error:  # the network ran before: an operation or value that Tracing does not know
            raise ScapError(f"{evaluated.modules.words()} cannot be followed: {first_line(error)}") from error
        if not evaluated.returns:
            raise ScapError("the network returns nothing that a cut could be compared by; let it return its tensors")
        self.used, self.computed = set(evaluated.used), dict(evaluated.computed)
        self.norms, self.way = evaluated.norms, evaluated.way
        self.untrained = self._train(example) if training else None
        self.trains_more = self.used != evaluated.used
        if coupled:
            link_grouped(self.ledger, self.tensors)
            forbid_both_ways(self.ledger)
        self.groups = Groups(self.ledger)

    def reaching(self, module: str) -> set[str]:
        """The layers whose channels the operations in a module (not those in its children) read."""
        tracing = Tracing(self.network, Ledger(self.coupled, self.ledger.blocks), watch=module)
        tracing.follow(self.network, self.example)
        met = set(tracing.met)
        return {layer_of(block.name) for block in self.ledger.of("rows") if not met.isdisjoint(block.ids.tolist())}

    def _train(self, example: Example) -> str | None:
        """Follow training mode, too; what went wrong, where it does not run."""
        for twice in (False, True):  # batch norms of 1x1 maps need two images
            given = mapped(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor, example) if twice else example
            network = skeleton(self.network)
            network.train()
            tracing = Tracing(network, self.ledger)
            try:
                tracing.follow(network, given)
            except Exception as error:  # the user's forward may raise anything: targets may be missing
                reason = f"training fails on the example ({first_line(error)})"
                continue
            self.used |= tracing.used
            self.computed |= tracing.computed
            return None
        return None if self._confined(tracing, reason) else reason

    def _confined(self, tracing: Tracing, reason: str) -> bool:
        """Refuse what a branch that only training runs reads, where it fails inside of this branch; whether it does."""
        unused = self._unused()
        for name, given in zip(tracing.modules.running, tracing.modules.given, strict=True):
            below = [layer for layer in unused if f"{layer}.".startswith(f"{name}.")]
            if name and below == unused and not any(f"{layer}.".startswith(f"{name}.") for layer in self.used):
                for _, tensor in tensors_of(given):
                    labels = tracing.shadow.read(tensor) if tracing.shadow.holds(tensor) else None
                    if labels is not None:
                        self.ledger.forbid(labels, f"are read by {name!r} in training, and {reason}")
                self.computed |= {layer: reason for layer in unused}
                return True
        return not unused

    def _unused(self) -> list[str]:
        """Convolutions and linear layers that no run has used."""
        seen = self.used | self.computed.keys()
        return [name for name, module in self.network.named_modules() if _has_weights(module) and name not in seen]

    def obstacle(self, layer: str) -> str | None:
        """Why the output channels of a layer cannot be removed, alone or (`coupled`) with its group, or None."""
        checks = (self._use, self._coupled) if self.coupled else (self._kind, self._use, self._group)
        for check in (*checks, self._idle, self._training):
            if reason := check(layer):
                return reason
        return None

    @cached_property
    def together(self) -> dict[str, Group]:
        """Layer -> the group that it belongs to."""
        return {layer: group for group in groups_of(self.groups, self.order) for layer in group.members}

    def name_of(self, layer: str) -> str:
        """The layer that plans name a layer's group by; its own name where it goes alone, nothing where there is none."""
        if not self.coupled:
            return layer
        return (self.together[layer].name or "") if layer in self.together else ""

    def units(self, layer: str) -> Ids:
        """(K,) which unit each output channel of a layer belongs to: what is removed at once."""
        return self.together[layer].members[layer] if self.coupled else np.arange(self.rows(layer).size)

    def whole(self, plan: Plan) -> Plan:
        """The plan of every layer that loses channels by `plan`, which may name a group by its first layer."""
        found: Plan = {}
        for layer, kept in plan.items():
            found |= self.together[layer].keeping(layer, kept)
        return found

    def _coupled(self, layer: str) -> str | None:
        group = self.together[layer]
        for found in group.classes.tolist():
            if reason := self.groups.obstacles.get(found):
                return f"its channels {reason}"
        if len(group.classes) < 2:
            return "its channels can only go all at once"
        if group.name is None:
            first, *others = group.members
            return f"it shares its channels with {others[0] if first == layer else first!r}, and no layer holds all of these"
        module = self.layers.get(group.name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            what = f"is a {type(module).__name__}" if group.name == layer else f"goes with {group.name!r}"
            return f"it {what}, no two-dimensional convolution or linear layer"
        return None

    def _kind(self, layer: str) -> str | None:
        conv = self.layers[layer]
        if not isinstance(conv, nn.Conv2d):
            return f"it is a {type(conv).__name__}, no two-dimensional convolution"
        return f"it is grouped (groups={conv.groups})" if conv.groups > 1 else None

    def _use(self, layer: str) -> str | None:
        if layer in self.computed:
            return self.computed[layer]
        if layer in self.used:
            return None
        if other := self._tied(layer):
            return f"it shares its weight with {other!r}"
        if ("elements", f"{layer}.weight", None) in self.ledger.blocks:
            return "its weight is changed by the forward pass before it is used"
        return "it is not used when the network runs"

    def _tied(self, layer: str) -> str | None:
        """An earlier layer that holds the same weight."""
        weight = self.layers[layer]._parameters.get("weight")
        same = (name for name, other in self.layers.items() if other._parameters.get("weight") is weight)
        return next((name for name in same if name != layer), None) if weight is not None else None

    def _group(self, layer: str) -> str | None:
        rows = self.rows(layer)
        groups = self.groups.of(rows.ids)
        partners: list[Block] = []
        for group in dict.fromkeys(groups.tolist()):
            if reason := self.groups.obstacles.get(group):
                return f"its channels {reason}"
            if weight := self.groups.grouped.get(group):
                return f"its channels are read by the grouped convolution {layer_of(weight)!r}"
            partners += [block for block, _ in self.groups.members[group] if block is not rows]
        if partners:
            names = {layer_of(block.name) for block in partners}
            first = sorted(names, key=lambda name: (self.order.get(name, len(self.order)), name))[:2]
            return f"it shares its channels with {' and '.join(map(repr, first))}"
        return "its channels are combined with one another" if len(set(groups.tolist())) < rows.size else None

    def _idle(self, layer: str) -> str | None:
        """What is only kept aside, as an attribute or an array, is no less a result than what the network returns."""
        own = self.groups.of(self.rows(layer).ids).tolist()
        idle = len(own) > 1 and self.groups.read.isdisjoint(own)  # one channel never goes: it may be a gate
        return "no layer is seen to read its channels" if idle else None

    def _training(self, layer: str) -> str | None:
        if self.untrained is None or not (unused := self._unused()):
            return None
        return f"{unused[0]!r} may read its channels in training, and {self.untrained}"

    def rows(self, layer: str) -> Block:
        """The output channels of a layer; a linear layer's may be either dimension of its weight."""
        name, transposed = f"{layer}.weight" if layer else "weight", int(getattr(self.layers[layer], "transposed", False))
        found = (self.ledger.blocks.get(("rows", name, dim)) for dim in (transposed, 1 - transposed))
        return next(block for block in found if block is not None)

    def slices(self, plan: Plan) -> Slices:
        """What stays of each parameter and buffer when the layers of a plan keep only the plan's channels."""
        removed: set[int] = set()
        for layer, kept in plan.items():
            own = self.groups.of(self.rows(layer).ids)
            removed |= set(own.tolist()) - set(own[list(kept)].tolist())
        found: Slices = {}
        for block, held, _ in self.groups.holders(removed):
            if block.kind == "elements":
                found |= self._entries(block, held)
            elif block.kind != "grouped" and block.dim is not None:
                found[block.name, block.dim] = np.flatnonzero(~held)
        return found

    @cached_property
    def _sharing(self) -> dict[int, list[str]]:
        """The names of the tensors that lie in one memory."""
        found: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            found.setdefault(tensor.untyped_storage()._cdata, []).append(name)
        return found

    def _entries(self, block: Block, held: NDArray[np.bool_]) -> Slices:
        """Slices of the tensors (several may share one memory) whose entries have the ids of `block`."""
        memory = self.tensors[block.name].untyped_storage()._cdata
        found: Slices = {}
        for name in self._sharing[memory]:
            tensor = self.tensors[name]
            layout = tensor.size(), tensor.stride(), tensor.storage_offset()
            gone, linked = (
                torch.from_numpy(mask).as_strided(*layout).numpy() for mask in (held, self.groups.linked(block.ids))
            )
            if gone.any():
                dim, kept = _slab(name, gone, linked & ~gone)
                found[name, dim] = kept
        return found


def _slab(name: str, gone: NDArray[np.bool_], stays: NDArray[np.bool_]) -> tuple[int, Ids]:
    """The dimension along which what goes and what stays lie in different slices, and the positions that stay."""
    for dim in range(gone.ndim):
        others = tuple(axis for axis in range(gone.ndim) if axis != dim)
        going = gone.any(others)
        if not (going & stays.any(others)).any():
            return dim, np.flatnonzero(~going)
    raise ScapError(f"{name!r} holds its channels in a form that cannot be cut")


def _has_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd) and holds_weight(module)
