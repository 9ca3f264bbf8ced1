"""Which channels of the unpruned network a pruned one still has: noted by the surgery, kept through copies, saved with it."""

from torch import nn

from scap.pruning.plans import Plan

NOTE = "_scap_plans"  # attribute of a pruned network: the plan from the unpruned network, the last plan asked for


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does what `first` and then `second` do: channels by their numbers in the unpruned network.

    >>> compose({"conv": [0, 2, 5]}, {"conv": [1, 2], "other": [3]})
    {'conv': [2, 5], 'other': [3]}
    """
    return first | {layer: [first[layer][k] for k in kept] if layer in first else kept for layer, kept in second.items()}


def applied(network: nn.Module) -> Plan | None:
    """The plan that leads from the unpruned network to this one; None where none is known."""
    return getattr(network, NOTE, (None, None))[0]


def last_applied(network: nn.Module) -> Plan | None:
    """The last plan that was asked for, in the numbers of the network that it was applied to."""
    return getattr(network, NOTE, (None, None))[1]


def note(pruned: nn.Module, network: nn.Module | None, plan: Plan, *, asked: Plan | None = None) -> None:
    """Note on `pruned` that `plan` was applied to `network` (None: to the unpruned one).

    `plan` holds every layer that lost channels; `asked` is the plan as it was given, which names groups by one layer.
    """
    before = applied(network) if network is not None else None
    setattr(pruned, NOTE, (compose(before or {}, plan), plan if asked is None else asked))
