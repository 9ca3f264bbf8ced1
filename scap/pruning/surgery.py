"""Structural surgery: removes output channels of convolutions and everything that reads them, and proves each cut."""

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from scap.errors import ScapError
from scap.models.inputs import Example, first_tensor
from scap.models.layers import conv_layers, not_a_layer
from scap.pruning.channels.graph import Graph
from scap.pruning.check import Outcome, law_8
from scap.pruning.copies import Rehearsal, check_network, copied, undisturbed
from scap.pruning.cut import cut
from scap.pruning.history import note
from scap.pruning.plans import Plan, channel_indices

if TYPE_CHECKING:
    import pandas as pd

TRIALS = 12  # cuts that are tried at most to tell layers that fail from those that do not


def prunable_layers(network: nn.Module, example: Example) -> list[str]:
    """The convolutions whose output channels can be removed alone.

    Left out are those coupled with another convolution's outputs (residual streams, depthwise), grouped ones, those whose
    channels are normalised or rearranged together or are the network's own outputs (a classifier), and unused ones;
    `explain` says which is which. Half of the channels of all layers listed have been removed from a copy and the result
    compared with the original (law 8).

    Args:
        network: Any module; it is not altered.
        example: An input: a tensor (N, channels, H, W), or a tuple or dict of all arguments.

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
    return [layer for layer, reason in _reasons(network, example).items() if reason is None]


def some_prunable_layers(network: nn.Module, example: Example) -> list[str]:
    """What prunable_layers lists; ScapError where that is nothing, with the reasons."""
    reasons = _reasons(network, example)
    layers = [layer for layer, reason in reasons.items() if reason is None]
    if not layers:
        first = "; ".join(f"{layer!r}: {reason}" for layer, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        words = f"{first}{more}. scap.explain lists them" if reasons else "it has no convolution"
        raise ScapError(f"the network has no layer that can be pruned alone: {words}")
    return layers


def explain(network: nn.Module, example: Example) -> "pd.DataFrame":
    """Why a convolution can be pruned, or what stands in the way.

    Args:
        network: Any module; it is not altered.
        example: As in `prunable_layers`.

    Returns:
        One row for each convolution: `layer` (module path), `prunable`, and `reason`, empty for those that are; else it
        names the module that the layer is coupled with or that stands in the way.

    Raises:
        ScapError: Where the network does not run on the example.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.explain(network, torch.zeros(1, 3, 8, 8))["prunable"].tolist()
        [True, False]
    """
    import pandas as pd

    rows = [(layer, reason is None, reason or "") for layer, reason in _reasons(network, example).items()]
    return pd.DataFrame(rows, columns=["layer", "prunable", "reason"])


def _reasons(network: nn.Module, example: Example) -> dict[str, str | None]:
    check_network(network)
    first_tensor(example)
    with undisturbed(network):
        return Surgery(network, example).reasons


def prune_network(network: nn.Module, plan: Plan, example: Example) -> nn.Module:
    """A copy of `network` in which each layer of `plan` holds only the channels that the plan keeps.

    What follows (batch norm, the next layers' inputs) shrinks alike; layers outside the plan keep all their
    channels, and a plan that keeps all leaves the outputs bit-equal (law 7). Every cut is compared with the original
    whose removed channels are zeroed where they are read (law 8). `example` as in prunable_layers. Raises ScapError for
    an unknown, coupled or emptied layer, for channels that do not exist, and where the comparison fails.
    """
    check_network(network)
    plan = checked_plan(plan, network)
    first_tensor(example)
    with undisturbed(network):
        pruned = Surgery(network, example).prune(plan) if plan else copied(network)
    note(pruned, network, plan)
    return pruned


def checked_plan(plan: Plan, network: nn.Module) -> Plan:
    """The plan with plain integers; ScapError where it does not fit the convolutions of `network`."""
    if not hasattr(plan, "items"):
        raise ScapError(f"plan: is a {type(plan).__name__}; it must map layers to the channels that they keep")
    return {layer: _checked_channels(layer, kept, network) for layer, kept in plan.items()}


def _checked_channels(layer: str, kept: Iterable[int], network: nn.Module) -> list[int]:
    convs = conv_layers(network)
    if layer not in convs:
        raise ScapError(f"plan: {not_a_layer(network, layer)}")
    kept, channels = channel_indices(layer, kept), convs[layer].out_channels
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

    def __init__(self, network: nn.Module, example: Example) -> None:
        self.network = network
        self.rehearsal = Rehearsal(network, example)
        self.graph = Graph(self.rehearsal.network, self.rehearsal.example)

    @cached_property
    def reasons(self) -> dict[str, str | None]:
        """Why each convolution cannot be pruned, or None: by the graph, then by a trial of all that remain."""
        found = {layer: self.graph.obstacle(layer) for layer in self.graph.convolutions}
        generator = np.random.default_rng(0)
        halves: Plan = {}
        for layer in (layer for layer, reason in found.items() if reason is None):
            channels = self.graph.rows(layer).size
            halves[layer] = sorted(generator.choice(channels, -(-channels // 2), replace=False).tolist())
        return found | self.failures(halves)

    def prune(self, plan: Plan) -> nn.Module:
        """The network of its own that `plan` makes, or ScapError."""
        reasons = {layer: self.graph.obstacle(layer) for layer in plan}
        if not any(reasons.values()):
            reasons |= self.failures(plan)
        for layer, reason in reasons.items():
            if reason:
                raise ScapError(
                    f"plan: layer {layer!r} cannot be pruned alone: {reason}. Leave it out of the plan "
                    "(scap.prunable_layers lists those that can be pruned, scap.explain says why others cannot)"
                )
        return cut(copied(self.network), self.graph.slices(plan))

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
        outcome = law_8(self.rehearsal.network, slices, plan, self.rehearsal.example)
        if outcome.reason is None and self.graph.trains_more:
            trained = law_8(self.rehearsal.network, slices, plan, self.rehearsal.example, training=True)
            trained.difference = max(outcome.difference, trained.difference)
            return trained
        return outcome

    def _parts(self, layers: list[str], outcome: Outcome) -> list[list[str]]:
        """Two parts of layers that fail together: those that reach the module where it shows, and the others."""
        near = self.graph.reaching(outcome.module)
        suspects = [layer for layer in layers if layer in near]
        if suspects and len(suspects) < len(layers):
            return [[layer for layer in layers if layer not in near], suspects]
        return [layers[: len(layers) // 2], layers[len(layers) // 2 :]]
