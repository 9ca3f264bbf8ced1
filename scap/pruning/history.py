"""Which channels of the unpruned network a pruned one still has: noted by the surgery, kept through copies, saved with it."""

from collections.abc import Mapping, Sequence

from torch import nn

from scap.models.layers import tensors_by_name, weighted_layers, width
from scap.pruning.plans import Plan

NOTE = "_scap_plans"  # attribute of a pruned network: the plan from the unpruned network, the last plan asked for
WHOLE = "_scap_whole"  # of each tensor the shape in the unpruned network, and that after the cut
Shapes = dict[str, tuple[int, ...]]


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does what `first` and then `second` do: channels by their numbers in the unpruned network.

    >>> compose({"conv": [0, 2, 5]}, {"conv": [1, 2], "other": [3]})
    {'conv': [2, 5], 'other': [3]}
    """
    return first | {layer: [first[layer][k] for k in kept] if layer in first else kept for layer, kept in second.items()}


def applied(network: nn.Module) -> Plan | None:
    """The plan that leads from the unpruned network to this one; None where none is known.

    Without layers that have other widths by now: someone has put others in their place, and these are not pruned.
    """
    plan = getattr(network, NOTE, (None, None))[0]
    if plan is None:
        return None
    layers = weighted_layers(network)
    return {layer: kept for layer, kept in plan.items() if layer in layers and width(layers[layer]) == len(kept)}


def last_applied(network: nn.Module) -> Plan | None:
    """The last plan that was asked for, in the numbers of the network that it was applied to."""
    return getattr(network, NOTE, (None, None))[1]


def whole_shapes(network: nn.Module) -> Shapes | None:
    """The shapes of the tensors in the unpruned network, without tensors that others took the place of; None: not known."""
    noted = getattr(network, WHOLE, None)
    if noted is None:
        return None
    now = _shapes(network)
    return {name: whole for name, (whole, after) in noted.items() if now.get(name) == after}


def note(
    pruned: nn.Module,
    network: nn.Module | None,
    plan: Plan,
    *,
    asked: Plan | None = None,
    whole: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Note on `pruned` that `plan` was applied to `network`, or (None) to the unpruned one, of the shapes `whole` if known.

    `plan` holds every layer that lost channels; `asked` is the plan as it was given, which names groups by one layer.
    """
    before = applied(network) if network is not None else None
    setattr(pruned, NOTE, (compose(before or {}, plan), plan if asked is None else asked))
    if network is not None:
        whole = _shapes(network) if before is None else whole_shapes(network)
    if whole is not None:
        after = _shapes(pruned)
        setattr(pruned, WHOLE, {name: (tuple(size), after[name]) for name, size in whole.items() if name in after})


def _shapes(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors_by_name(network).items()}
