"""Rules of operations that make one value of many: reductions, statistics, pooling."""

import re
from typing import Any

from torch import Tensor, nn

from scap.pruning.channels.calls import Call, channel_vector, join
from scap.pruning.channels.shadow import compact, varies

SPATIAL = re.compile(
    r"_?(adaptive_)?(max|avg)_pool(\d)d.*|_?upsample_\w+?(\d)d.*|(reflection|replication)_pad(\d)d|grid_sampler_(\d)d"
)


def reduction(call: Call) -> None:
    """One value for many: they must all be of one channel."""
    labels = call.read(call.args.get("self", call.args.get("input")))
    if labels is None:
        return
    dims = dims_of(call.args.get("dim"), labels.ndim)
    if any(varies(labels, dim) for dim in dims):
        call.forbid(compact(labels), f"are mixed by {call}")
        return
    for dim in dims:
        labels = labels.narrow(dim, 0, min(1, labels.size(dim)))
    for out in call.outs:
        if labels.numel() == out.numel():
            call.shadow.write(out, labels.reshape(out.shape))


def dims_of(given: Any, ndim: int) -> list[int]:
    if given is None or given == []:
        return list(range(ndim))
    return [dim % max(1, ndim) for dim in (given if isinstance(given, list | tuple) else [given])] if ndim else []


def along(call: Call) -> None:
    """Values along a dimension see each other."""
    labels = call.read(call.args["self"])
    if labels is None or not labels.ndim:
        return
    _keeps_shape(call, labels, [call.args.get("dim", -1) % labels.ndim], f"are normalised or ordered together by {call}")


def layer_norm(call: Call) -> None:
    """Statistics over the last dimensions; its weights belong to these."""
    labels = call.read(call.args["input"])
    if labels is None:
        return
    last = range(labels.ndim - len(call.args["normalized_shape"]), labels.ndim)
    if call.ledger.coupled and len(last) == 1 and isinstance(call.modules.modules[call.modules.innermost], nn.LayerNorm):
        words = f"are normalised together by {call}, over those that stay"
        call.ledger.note_norm(compact(labels), words)
        call.shadow.write(call.outs[0], labels)
        _link_scales(call, labels)
    elif _keeps_shape(call, labels, list(last), f"are normalised together by {call}"):
        _link_scales(call, labels)


def _link_scales(call: Call, labels: Tensor) -> None:
    for key in ("weight", "bias"):
        own = call.read(call.args.get(key))
        if own is not None:
            join(call, labels, own.expand(labels.shape))


def group_norm(call: Call) -> None:
    """Statistics over groups of channels, of a number that is written down."""
    labels = call.read(call.args["input"])
    if labels is not None:
        _keeps_shape(call, labels, [1], f"are normalised together by {call}")


def _keeps_shape(call: Call, labels: Tensor, dims: list[int], reason: str) -> bool:
    if any(varies(labels, dim) for dim in dims):
        call.forbid(compact(labels), reason)
        return False
    for out in call.outs:
        if out.ndim == labels.ndim:
            own = labels
            for dim in dims:
                own = own.narrow(dim, 0, min(1, own.size(dim)))
            call.shadow.write(out, own.expand(out.shape))
    return True


def spatial(call: Call) -> None:
    """Pooling, resizing, padding: over the last dimensions, each channel for itself."""
    labels = call.read(call.args.get("self", call.args.get("input")))
    found = SPATIAL.fullmatch(call.name)
    if labels is None or found is None:
        return
    count = next(int(digit) for digit in found.groups() if digit is not None and digit.isdigit())
    dims = list(range(labels.ndim - count, labels.ndim))
    if any(varies(labels, dim) for dim in dims):
        call.forbid(compact(labels), f"are mixed by {call}")
        return
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    call.write(labels)


def batch_norm(call: Call) -> None:
    """Each channel for itself; its scale, shift and statistics go with it."""
    labels = call.read(call.args["input"])
    vector = None if labels is None else channel_vector(labels, 1)
    if labels is None:
        return
    if vector is None:
        call.forbid(compact(labels), f"are mixed by {call}")
        return
    for key in ("weight", "bias", "running_mean", "running_var"):
        own = call.read(call.args.get(key))
        if own is not None:
            call.ledger.link(vector, own)
    call.shadow.write(call.outs[0], labels)
