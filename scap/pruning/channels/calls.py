"""An operation that has just run, and what all rules share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scap.pruning.channels.ledger import Ledger
from scap.pruning.channels.modules import Modules, tensors_among
from scap.pruning.channels.shadow import Shadow, compact, has_channels, varies

HEADS = "attention heads, and other products of two results, stay whole"  # the end of a reason
LARGE = 1_000_000  # entries of a parameter beyond which they are not followed one by one


@dataclass
class Call:
    """One operation that has just run."""

    name: str
    pointwise: bool
    mutates: bool  # it writes into one of its arguments
    args: dict[str, Any]  # by their names in the operation's schema
    outs: list[Tensor]
    modules: Modules
    shadow: Shadow
    ledger: Ledger

    def read(self, value: Any) -> Tensor | None:
        """Labels of an argument."""
        return self.shadow.read(value) if isinstance(value, Tensor) else None

    def write(self, labels: Tensor) -> None:
        """The same labels for every output of this shape."""
        for out in self.outs:
            if labels.ndim == out.ndim:
                self.shadow.write(out, labels.expand(out.shape))

    def forbid(self, labels: Tensor, reason: str) -> None:
        """The channels among these labels cannot go: `reason` completes "its channels ..."; no label comes out."""
        self.ledger.forbid(labels, reason)
        self.close(labels)

    def close(self, labels: Tensor | None = None) -> None:
        """What comes out has a size that surgery cannot change; nor may the parameters change that it was made of."""
        block = self.ledger.block("fixed", f"the result of {self}")
        fixed = torch.tensor(block.start, dtype=torch.int32, device="cpu")
        if labels is not None and not has_channels(labels) and labels.numel() < LARGE:
            self.ledger.link(labels, fixed.to(labels.device).expand(labels.shape))
        for out in self.outs:
            self.shadow.write(out, fixed.expand(out.shape))

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors_among(self.args.values())

    @property
    def attends(self) -> bool:
        """Whether it is a product of two results, as in attention, or a part of torch's module of attention."""
        named = "attention" in self.name or self.name in ("bmm", "baddbmm")
        return named or isinstance(self.modules.modules[self.modules.innermost], nn.MultiheadAttention)

    def __str__(self) -> str:
        return f"{self.name.strip('_')!r} in {self.modules.words()}"


def unknown(call: Call) -> None:
    """No rule: what it reads stays."""
    for tensor in call.tensors():
        labels = call.read(tensor) if call.shadow.holds(tensor) else None
        if labels is not None:
            call.forbid(compact(labels), f"are read by {call}, which SCAP cannot cut{f': {HEADS}' if call.attends else ''}")
    call.close()


def join(call: Call, first: Tensor, second: Tensor) -> Tensor:
    """The labels of a result of two operands: links where they meet."""
    for dim in reversed(range(first.ndim)):
        if not varies(first, dim) and not varies(second, dim):
            first, second = (labels.narrow(dim, 0, min(1, labels.size(dim))) for labels in (first, second))
    over_first, over_second = _broadcasts(call, first, second), _broadcasts(call, second, first)
    if not over_first and not over_second:  # channels that are broadcast over (a gate) stay when one of the others goes
        call.ledger.link(first, second)
    if over_first and over_second and has_channels(first) and has_channels(second):
        call.ledger.forbid(second, f"are combined with every channel of another layer by {call}")
    if over_first:
        return second if over_second and not has_channels(first) else first
    if over_second:
        return second
    low = torch.minimum(first, second)
    return torch.where(low == 0, torch.maximum(first, second), low)


def _broadcasts(call: Call, labels: Tensor, other: Tensor) -> bool:
    """Whether `other` is one value along a dimension along which `labels` vary: then these may go without it."""
    if not has_channels(labels) and has_channels(other):
        return False  # several entries of a parameter may belong to one channel
    for dim in range(labels.ndim):
        if varies(labels, dim) and not varies(other, dim):
            whole = other.stride(dim) != 0 and other.size(dim) > 1
            if not (whole and call.ledger.fixed.intersection(torch.unique(other).tolist())):
                return True
    return False


def channel_vector(labels: Tensor, dim: int) -> Tensor | None:
    """The label of each place along `dim`; None where they vary along another dimension, too."""
    small = compact(labels, (other for other in range(labels.ndim) if other != dim))
    return small.flatten() if small.numel() == small.size(dim) else None
