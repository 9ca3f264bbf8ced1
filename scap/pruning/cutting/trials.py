"""What surgery may do to one network: the graph of its channels, and cuts that are tried on a copy."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from torch import nn

from scap.errors import ScapError
from scap.models.inputs import Example, run
from scap.models.layers import noting_channels, plain_instance_norms
from scap.pruning.channels.graph import Graph
from scap.pruning.copies import Rehearsal, copied, skeleton
from scap.pruning.cutting.check import Outcome, law_8
from scap.pruning.cutting.slices import cut
from scap.pruning.cutting.ways import OwnWay
from scap.pruning.plans import Plan

TRIALS = 12  # cuts that are tried at most to tell layers that fail from those that do not


class Surgery:
    """The graph of one network and the cuts tried on its copy; to be used inside `undisturbed`."""

    def __init__(self, network: nn.Module, example: Example, coupled: bool = False) -> None:
        self.network, self.coupled = network, coupled
        self.rehearsal = Rehearsal(network, example)
        self.graph = Graph(self.rehearsal.network, self.rehearsal.example, coupled=coupled)
        self.own = OwnWay(network, example)
        self.own.check(self.graph.way, self.rehearsal)

    @cached_property
    def trains_more(self) -> bool:
        """Whether training runs other layers or operations than evaluation."""
        return self.graph.trains_more or self.own.trains_otherwise

    @cached_property
    def own_values(self) -> tuple[nn.Module, Example] | None:
        """The network with its own values, as precise as the rehearsal, and an image of its own; None where one is not finite.

        Random values may switch off what its own do not, and take another way of two that look alike.
        """
        network, example = self.own.as_precise_as(self.rehearsal)
        held = (tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point())
        finite = all(tensor.isfinite().all() for tensor in held)
        return (network, example) if finite else None

    @cached_property
    def reasons(self) -> dict[str, str | None]:
        """Why each layer cannot be pruned, or None: by the graph, then by a trial of all that remain."""
        found = {layer: self.graph.obstacle(layer) for layer in self.graph.layers}
        names = {layer: self.graph.name_of(layer) for layer, reason in found.items() if reason is None}
        failed = self.failures(self.halves([layer for layer in names if names[layer] == layer]))
        return found | {layer: failed[name] for layer, name in names.items() if name in failed}

    @property
    def prunable(self) -> list[str]:
        """The layers that plans may name."""
        return [layer for layer, reason in self.reasons.items() if reason is None and not self.misnamed(layer)]

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
        return (
            self.graph.whole({layer: plan[layer] for layer in plan if layer in self.graph.together}) if self.coupled else plan
        )

    def named(self, plan: Plan) -> Plan:
        """The plan without layers that repeat what the layer says that their group is named by, as composed plans have them."""
        whole = self.whole({layer: kept for layer, kept in plan.items() if not self.misnamed(layer)})
        return {layer: kept for layer, kept in plan.items() if not self.misnamed(layer) or whole.get(layer) != kept}

    def prune(self, plan: Plan) -> nn.Module:
        """The network of its own that `plan` makes, or ScapError."""
        reasons = {layer: self.graph.obstacle(layer) or self.misnamed(layer) for layer in plan}
        if not any(reasons.values()):
            reasons |= self.failures(plan)
        for layer, reason in reasons.items():
            if reason:
                how = "" if self.coupled else " alone"
                raise ScapError(
                    f"plan: layer {layer!r} cannot be pruned{how}: {reason}. Leave it out of the plan "
                    "(scap.prunable_layers lists those that can be pruned, scap.explain says why others cannot)"
                )
        slices = self.graph.slices(plan)
        pruned = cut(copied(self.network), slices)
        if norms := plain_instance_norms(pruned):
            smaller = cut(skeleton(self.rehearsal.network), slices)
            with noting_channels(smaller):
                run(smaller, self.rehearsal.example)
            for name, norm in norms.items():
                norm.num_features = plain_instance_norms(smaller)[name].num_features
        return pruned

    def misnamed(self, layer: str) -> str | None:
        """By which layer plans name the group of another one."""
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
        """Law 8 for one plan, in evaluation and, where it runs something else, in training mode."""
        try:
            slices = self.graph.slices(plan)
        except ScapError as error:
            return Outcome(reason=f"cut, {error}")
        if not slices:
            return Outcome()
        plan = self.whole(plan)
        outcome = law_8(self.rehearsal.network, slices, plan, self.rehearsal.example)
        if outcome.reason is None and self.own_values is not None:
            own = law_8(*self.own_values[:1], slices, plan, *self.own_values[1:])
            own.difference = max(outcome.difference, own.difference)
            outcome = own
        if outcome.reason is None and self.trains_more:
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
