"""How many channels each layer keeps, where a criterion does not say it."""

from torch import Tensor, nn

from scap.models.layers import conv_layers
from scap.pruning.counting import count_operations
from scap.pruning.plans import Plan
from scap.pruning.surgery import prune_network


def uniform_widths(network: nn.Module, plan: Plan, example: Tensor, multiple: int = 1) -> dict[str, int]:
    """Channels per layer of `plan` when all keep the same share: the largest that needs no more MACs than the plan.

    Widths are rounded down to a `multiple`, at least one of it, at most the whole layer.
    """
    budget = count_operations(prune_network(network, plan, example), example)["macs"]
    totals = {layer: conv.out_channels for layer, conv in conv_layers(network).items() if layer in plan}
    if all(len(kept) == totals[layer] for layer, kept in plan.items()):
        return totals

    def widths(share: float) -> dict[str, int]:
        rounded = {layer: int(share * total) // multiple * multiple for layer, total in totals.items()}
        return {layer: min(total, max(multiple, rounded[layer])) for layer, total in totals.items()}

    low, high = 0.0, 1.0
    for _ in range(10):  # to a thousandth of the width
        middle = (low + high) / 2
        trial = prune_network(network, {layer: list(range(n)) for layer, n in widths(middle).items()}, example)
        low, high = (middle, high) if count_operations(trial, example)["macs"] <= budget else (low, middle)
    return widths(low)
