"""How large a network would be after a cut, counted from the shapes that stay: nothing is cut or run."""

from collections.abc import Callable
from math import prod

from torch import nn

from scap.models.inputs import Example
from scap.pruning.copies import undisturbed
from scap.pruning.counting import count_operations, weight_macs
from scap.pruning.cutting.trials import Surgery
from scap.pruning.plans import Plan


class Sizes:
    """MACs for one image and parameters of a network under any plan, as count_operations would count them after the cut.

    Each output position of a convolution or linear layer, and each input position of a transposed convolution, uses every
    weight once: the MACs of a weight are to its size after the cut as before it.
    """

    def __init__(self, network: nn.Module, example: Example) -> None:
        with undisturbed(network):
            self.graph = Surgery(network, example, coupled=True).graph  # of layers that go alone, too
        self.macs = weight_macs(network, example)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        self.full = count_operations(network, example)

    def of(self, plan: Plan) -> dict[str, int]:
        """`macs` and `params` under `plan`."""
        after = {name: list(shape) for name, shape in self.shapes.items()}
        for (name, dim), kept in self.graph.slices(plan).items():
            if name in after:  # no buffer
                after[name][dim] = len(kept)
        spared = 0
        for name, macs in self.macs.items():
            if before := prod(self.shapes[name]):
                spared += macs - macs // before * prod(after[name])
        params = sum(prod(shape) for shape in after.values())
        return {"macs": self.full["macs"] - spared, "params": params}

    def meets(self, budgets: dict[str, float]) -> Callable[[Plan], bool]:
        """Whether a plan leaves no more than these shares of `macs` and `params`."""
        most = {key: share * self.full[key] * (1 + 1e-12) for key, share in budgets.items()}
        return lambda plan: all(self.of(plan)[key] <= limit for key, limit in most.items())
