"""Structural surgery: removes output channels of convolutions and everything that reads them, and proves each cut."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from scap.checks import check_flag
from scap.errors import ScapError
from scap.models.inputs import Example, first_tensor
from scap.models.layers import conv_layers, not_a_layer, weighted_layers
from scap.pruning.channels.ledger import Ids
from scap.pruning.copies import check_network, copied, undisturbed
from scap.pruning.cutting.trials import Surgery
from scap.pruning.history import note
from scap.pruning.plans import Plan, channel_indices, mapped_plan

if TYPE_CHECKING:
    import pandas as pd


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
    return _surgery(network, example, coupled).prunable


def some_prunable_layers(network: nn.Module, example: Example) -> list[str]:
    """What prunable_layers lists; ScapError where that is nothing, with the reasons."""
    return _some(_surgery(network, example, False))


def _some(surgery: Surgery) -> list[str]:
    layers = surgery.prunable
    if not layers:
        reasons = list(surgery.reasons.items())
        first = "; ".join(f"{layer!r}: {reason}" for layer, reason in reasons[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        words = f"{first}{more}. scap.explain lists them" if reasons else "it has no convolution"
        raise ScapError(f"the network has no layer that can be pruned{'' if surgery.coupled else ' alone'}: {words}")
    return layers


def coupled_groups(network: nn.Module, example: Example, layers: Iterable[str] | None = None) -> dict[str, dict[str, Ids]]:
    """Groups by name, all or those that `layers` name: layer -> (K,) which unit each of its output channels belongs to.

    A unit is what goes at once. Raises ScapError where there is no group, and for a layer that names none.
    """
    surgery, known = _surgery(network, example, True), weighted_layers(network)
    names = _some(surgery) if layers is None else list(layers)
    for layer in names:
        if layer not in known:
            raise ScapError(f"layers: {not_a_layer(network, layer, True)}")
        if reason := surgery.reasons[layer] or surgery.misnamed(layer):
            raise ScapError(f"layer {layer!r} cannot be pruned: {reason}")
    together = surgery.graph.together
    return {name: {layer: own for layer, own in together[name].members.items() if layer in known} for name in names}


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

    surgery = _surgery(network, example, coupled)
    rows = [(layer, reason is None, reason or "") for layer, reason in surgery.reasons.items()]
    table = pd.DataFrame(rows, columns=["layer", "prunable", "reason"]).astype({"prunable": bool})
    return table.assign(group=[surgery.graph.name_of(layer) for layer in table["layer"]]) if coupled else table


def _surgery(network: nn.Module, example: Example, coupled: bool) -> Surgery:
    """The surgery of a network, with the reasons why its layers cannot be pruned."""
    check_network(network)
    check_flag(coupled, "coupled")
    first_tensor(example)
    with undisturbed(network):
        surgery = Surgery(network, example, coupled)
        _ = surgery.reasons
    return surgery


def cut_network(network: nn.Module, plan: Plan, example: Example, *, coupled: bool = False) -> nn.Module:
    """A copy of `network` in which each layer of `plan` holds only the channels that the plan keeps.

    What follows (batch norm, the next layers' inputs) shrinks alike; layers outside the plan keep all their
    channels, and a plan that keeps all leaves the outputs bit-equal (law 7). Every cut is compared with the original
    whose removed channels are zeroed where they are read (law 8). With `coupled` a plan names groups by their first layers,
    and channels that go together with one that is kept stay. `example` as in prunable_layers. Raises ScapError for
    an unknown, coupled or emptied layer, for channels that do not exist, and where the comparison fails.
    """
    check_network(network)
    check_flag(coupled, "coupled")
    plan = checked_plan(plan, network, coupled)
    first_tensor(example)
    whole = plan
    with undisturbed(network):
        if plan:
            surgery = Surgery(network, example, coupled)
            plan = surgery.named(plan)
            pruned, known = surgery.prune(plan), weighted_layers(network)
            whole = {layer: kept for layer, kept in surgery.whole(plan).items() if layer in known}
        else:
            pruned = copied(network)
    note(pruned, network, whole, asked=plan)
    return pruned


def checked_plan(plan: Plan, network: nn.Module, coupled: bool = False) -> Plan:
    """The plan with plain integers; ScapError where it does not fit the layers of `network`."""
    plan = mapped_plan(plan)
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
