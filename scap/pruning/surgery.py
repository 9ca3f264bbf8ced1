"""Structural surgery: removes output channels of convolutions and everything that reads them, and proves each cut."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from scap.errors import ScapError
from scap.models.inputs import Example, first_tensor
from scap.models.layers import conv_layers, not_a_layer, weighted_layers
from scap.pruning.channels.graph import Graph
from scap.pruning.check import Outcome, law_8
from scap.pruning.copies import Rehearsal, check_network, copied, undisturbed
from scap.pruning.cut import cut
from scap.pruning.history import note
from scap.pruning.plans import Plan, channel_indices

if TYPE_CHECKING:
    import pandas as pd

TRIALS = 12  # cuts that are tried at most to tell layers that fail from those that do not


def prunable_layers(network: nn.Module, example: Example, *, coupled: bool = False) -> list[str]:
    """The convolutions whose output channels can be removed alone, or the groups of layers that must lose them together.

    Alone, left out are those coupled with another convolution's outputs (residual streams, depthwise) and grouped ones; in any
    case those whose channels are normalised or rearranged together or are the network's own outputs (a classifier), and
    unused ones. `explain` says which is which. Half of the channels of all layers listed have been removed
    from a copy and the result compared with the original (law 8).

    Args:
        network: Any module; it is not altered.
        example: An input: a tensor (N, channels, H, W), or a tuple or dict of all arguments.
        coupled: List groups of convolutions and linear layers (residual streams, depthwise convolutions, gates, the hidden
            layers of a classifier), each by the first layer of the network that holds all of its channels; a layer that can
            go alone is a group of its own.

    Returns:
        Module paths, in the order of the network.

    Raises:
        ScapError: Where the network does not run on the example.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.prunable_layers(network, torch.zeros(1, 3, 8, 8))
        ['0']
    """
    verdicts = _verdicts(network, example, coupled)
    return [each.layer for each in verdicts if each.reason is None and each.group == each.layer]


def some_groups(network: nn.Module, example: Example, coupled: bool) -> dict[str, list[str]]:
    """What prunable_layers lists, with the layers of each group; ScapError where that is nothing, with the reasons."""
    verdicts = _verdicts(network, example, coupled)
    layers = [each for each in verdicts if each.reason is None]
    if not layers:
        reasons = {each.layer: each.reason for each in verdicts}
        first = "; ".join(f"{layer!r}: {reason}" for layer, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        words = f"{first}{more}. scap.explain lists them" if reasons else "it has no convolution"
        alone = "" if coupled else " alone"
        raise ScapError(f"the network has no layer that can be pruned{alone}: {words}")
    names = [each.layer for each in layers if each.group == each.layer]
    return {name: [each.layer for each in layers if each.group == name] for name in names}


def explain(network: nn.Module, example: Example, *, coupled: bool = False) -> "pd.DataFrame":
    """Why a convolution can be pruned, or what stands in the way.

    Args:
        network: Any module; it is not altered.
        example: As in `prunable_layers`.
        coupled: Ask for groups of convolutions and linear layers.

    Returns:
        One row for each convolution (`coupled`: and linear layer): `layer` (module path), `prunable`, and `reason`, empty for
        those that are; else it names the module that the layer is coupled with or that stands in the way. `coupled`: also
        `group`, the layer that its group is named by, empty where it has none.

    Raises:
        ScapError: Where the network does not run on the example.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.explain(network, torch.zeros(1, 3, 8, 8))["prunable"].tolist()
        [True, False]
    """
    import pandas as pd

    columns = ["layer", "prunable", "reason", *(["group"] if coupled else [])]
    rows = [(each.layer, each.reason is None, each.reason or "", each.group) for each in _verdicts(network, example, coupled)]
    return pd.DataFrame([row[: len(columns)] for row in rows], columns=columns)


@dataclass(frozen=True)
class Verdict:
    """Whether a layer can be pruned: why not, and by which layer it is named in a plan."""

    layer: str
    reason: str | None
    group: str


def _verdicts(network: nn.Module, example: Example, coupled: bool) -> list[Verdict]:
    check_network(network)
    first_tensor(example)
    with undisturbed(network):
        surgery = Surgery(network, example, coupled)
        return [Verdict(layer, reason, surgery.graph.name_of(layer)) for layer, reason in surgery.reasons.items()]


def prune_network(network: nn.Module, plan: Plan, example: Example, *, coupled: bool = False) -> nn.Module:
    """A copy of `network` in which each layer of `plan` holds only the channels that the plan keeps.

    What follows (batch norm, the next layers' inputs) shrinks alike; layers outside the plan keep all their
    channels, and a plan that keeps all leaves the outputs bit-equal (law 7). Every cut is compared with the original
    whose removed channels are zeroed where they are read (law 8). With `coupled` a plan names groups by their first layers,
    and channels that go together with one that is kept stay. `example` as in prunable_layers. Raises ScapError for
    an unknown, coupled or emptied layer, for channels that do not exist, and where the comparison fails.
    """
    check_network(network)
    plan = checked_plan(plan, network, coupled)
    first_tensor(example)
    whole = plan
    with undisturbed(network):
        if plan:
            surgery = Surgery(network, example, coupled)
            pruned, known = surgery.prune(plan), weighted_layers(network)
            whole = {layer: kept for layer, kept in surgery.whole(plan).items() if layer in known}
        else:
            pruned = copied(network)
    note(pruned, network, whole, asked=plan)
    return pruned


def checked_plan(plan: Plan, network: nn.Module, coupled: bool = False) -> Plan:
    """The plan with plain integers; ScapError where it does not fit the layers of `network`."""
    if not hasattr(plan, "items"):
        raise ScapError(f"plan: is a {type(plan).__name__}; it must map layers to the channels that they keep")
    layers = weighted_layers(network) if coupled else conv_layers(network)
    for layer in plan:
        if layer not in layers:
            raise ScapError(f"plan: {not_a_layer(network, layer, coupled)}")
    return {layer: _checked_channels(layer, kept, len(layers[layer].weight)) for layer, kept in plan.items()}


def _checked_channels(layer: str, kept: Iterable[int], channels: int) -> list[int]:
    kept = channel_indices(layer, kept)
    if not kept:
        raise ScapError(f"plan: layer {layer!r} keeps no channel; keep one at least, or leave it out")
    if min(kept) < 0 or max(kept) >= channels:
        asked = f"{min(kept)}..{max(kept)}"
        raise ScapError(f"plan: layer {layer!r} has channels 0..{channels - 1}, but keeps {asked}")
    if any(left >= right for left, right in pairwise(kept)):
        raise ScapError(f"plan: the channels kept of layer {layer!r} must be strictly increasing")
    return kept


class Surgery:
    """The graph of one network and the cuts tried on its copy; to be used inside `undisturbed`."""

    def __init__(self, network: nn.Module, example: Example, coupled: bool = False) -> None:
        self.network, self.coupled = network, coupled
        self.rehearsal = Rehearsal(network, example)
        self.graph = Graph(self.rehearsal.network, self.rehearsal.example, coupled=coupled)

    @cached_property
    def reasons(self) -> dict[str, str | None]:
        """Why each layer cannot be pruned, or None: by the graph, then by a trial of all that remain."""
        found = {layer: self.graph.obstacle(layer) for layer in self.graph.layers}
        names = {layer: self.graph.name_of(layer) for layer, reason in found.items() if reason is None}
        failed = self.failures(self.halves([layer for layer in names if names[layer] == layer]))
        return found | {layer: failed[name] for layer, name in names.items() if name in failed}

    def halves(self, layers: Iterable[str]) -> Plan:
        """Half of the channels of each layer or group, chosen at random."""
        generator, plan = np.random.default_rng(0), {}
        for layer in layers:
            units = self.graph.units(layer)
            stay = generator.choice(units.max() + 1, -(-(units.max() + 1) // 2), replace=False)
            plan[layer] = np.flatnonzero(np.isin(units, stay)).tolist()
        return plan

    def whole(self, plan: Plan) -> Plan:
        """What every layer keeps of the groups that a plan names."""
        return self.graph.whole(plan) if self.coupled else plan

    def prune(self, plan: Plan) -> nn.Module:
        """The network of its own that `plan` makes, or ScapError."""
        reasons = {layer: self.graph.obstacle(layer) or self._misnamed(layer) for layer in plan}
        if not any(reasons.values()):
            reasons |= self.failures(plan)
        for layer, reason in reasons.items():
            if reason:
                how = "" if self.coupled else " alone"
                raise ScapError(
                    f"plan: layer {layer!r} cannot be pruned{how}: {reason}. Leave it out of the plan "
                    "(scap.prunable_layers lists those that can be pruned, scap.explain says why others cannot)"
                )
        return cut(copied(self.network), self.graph.slices(plan))

    def _misnamed(self, layer: str) -> str | None:
        name = self.graph.name_of(layer)
        return None if name == layer else f"it goes with a group, which plans name by {name!r}"

    def failures(self, plan: Plan) -> dict[str, str]:
        """Layers of `plan` whose cut fails law 8, and how: all are tried at once, and parts only where that fails."""
        waiting = [list(plan)] if plan else []
        found: dict[str, str] = {}
        for _ in range(TRIALS):
            if not waiting:
                return found
            layers = waiting.pop()
            outcome = self.check({layer: plan[layer] for layer in layers})
            if outcome.reason is not None and len(layers) == 1:
                found[layers[0]] = outcome.reason
            elif outcome.reason is not None:
                waiting += self._parts(layers, outcome)
        return found | {layer: "it could not be told apart from layers whose cut fails" for part in waiting for layer in part}

    def check(self, plan: Plan) -> Outcome:
        """Law 8 for one plan, in evaluation and, where it runs other layers, in training mode."""
        try:
            slices = self.graph.slices(plan)
        except ScapError as error:
            return Outcome(reason=f"cut, {error}")
        if not slices:
            return Outcome()
        plan = self.whole(plan)
        outcome = law_8(self.rehearsal.network, slices, plan, self.rehearsal.example)
        if outcome.reason is None and self.graph.trains_more:
            trained = law_8(self.rehearsal.network, slices, plan, self.rehearsal.example, training=True)
            trained.difference = max(outcome.difference, trained.difference)
            return trained
        return outcome

    def _parts(self, layers: list[str], outcome: Outcome) -> list[list[str]]:
        """Two parts of layers that fail together: those that reach the module where it shows, and the others."""
        near = {self.graph.name_of(layer) for layer in self.graph.reaching(outcome.module)}
        suspects = [layer for layer in layers if layer in near]
        if suspects and len(suspects) < len(layers):
            return [[layer for layer in layers if layer not in near], suspects]
        return [layers[: len(layers) // 2], layers[len(layers) // 2 :]]
