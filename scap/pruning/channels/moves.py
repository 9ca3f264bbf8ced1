"""Rules of operations that move entries: parts, views, padding, concatenation, copies, choices."""

import math

import torch
from torch import Tensor

from scap.pruning.channels.calls import Call, channel_vector, join, unknown
from scap.pruning.channels.mixing import dims_of
from scap.pruning.channels.shadow import compact, has_channels, varies, varying


def slices(call: Call) -> None:
    """A part of a tensor: its channels are counted from the front, so that none before them may go."""
    source = call.args["self"]
    labels = call.read(source)
    if labels is None or not labels.ndim:
        return
    dims = [call.args[key] % labels.ndim for key in ("dim", "dimension", "dim1", "dim2") if key in call.args]
    part = call.name in ("select", "unbind", "unfold", "diagonal") or any(
        out.size(dim) < labels.size(dim) for out in call.outs for dim in dims if dim < out.ndim
    )
    if part and any(varies(labels, dim) and _several(labels, dim) for dim in dims) and has_channels(labels):
        call.ledger.forbid(compact(labels), f"are taken apart by their positions by {call}")


def _several(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along `dim` beside places that have none, as a border has that is yet to be filled."""
    return bool(((labels > 0) & (labels != labels.amax(dim, keepdim=True))).any())


def reshapes(call: Call) -> None:
    """A view that spreads channels over two dimensions: what is left after a removal is no block any more."""
    before, after = call.read(call.args["self"]), call.read(call.outs[0])
    if before is None or after is None or not has_channels(after):
        return
    if len(varying(after)) > max(1, len(varying(before))):
        call.ledger.forbid(compact(after), f"are arranged in groups by {call}")


def constant_pad(call: Call) -> None:
    """The border belongs to the channel that it surrounds; channels that are added have none."""
    labels, pad = call.read(call.args["self"]), call.args["pad"]
    if labels is None:
        return
    for number in range(len(pad) // 2):
        dim = labels.ndim - 1 - number
        places = torch.arange(-pad[2 * number], labels.size(dim) + pad[2 * number + 1], device=labels.device)
        inside = (places >= 0) & (places < labels.size(dim))
        channels = varies(labels, dim)
        if channels and len(places) < labels.size(dim) and has_channels(labels):
            call.ledger.forbid(compact(labels), f"are taken apart by their positions by {call}")
        moved = labels.index_select(dim, places.clamp(0, labels.size(dim) - 1))
        shape = [-1 if d == dim else 1 for d in range(labels.ndim)]
        labels = torch.where(inside.view(shape), moved, 0) if channels else moved
    call.write(labels)


def concatenation(call: Call) -> None:
    """Along the channels: one after the other. Along another dimension: the channels at one place go together."""
    tensors, dim = call.args["tensors"], call.args.get("dim", 0)
    stacked = call.name == "stack"
    parts = []
    for tensor in tensors:
        labels = call.read(tensor)
        labels = torch.zeros_like(tensor, dtype=torch.int32) if labels is None else labels
        if tensor.numel() or tensor.ndim > 1:  # cat takes empty vectors among anything
            parts.append(labels.unsqueeze(dim) if stacked else labels)
    dim %= max(1, parts[0].ndim)
    across = {other for labels in parts for other in varying(labels)} - {dim}
    mixed = any(varies(labels, dim) for labels in parts if has_channels(labels))
    if not across or mixed or not any(has_channels(labels) for labels in parts):
        call.write(torch.cat(parts, dim))
        return
    shape = list(parts[0].shape)
    shape[dim] = 1
    slabs = [labels.narrow(dim, 0, 1).expand(shape) for labels in parts if labels.size(dim)]
    whole = slabs[0]
    for slab in slabs[1:]:
        whole = join(call, whole, slab)
    for labels in parts:  # entries of a parameter (a class token, positions) that stand beside a channel go with it
        if not has_channels(labels):
            call.ledger.link(whole.expand(labels.shape), labels)
    call.write(whole.expand(call.outs[0].shape))


def repeated(call: Call) -> None:
    """Runs on the labels themselves: whole copies one after the other, or in reversed order."""
    labels = call.read(call.args["self"])
    if labels is None:
        return
    call.write(labels.repeat(call.args["repeats"]) if call.name == "repeat" else labels.flip(call.args["dims"]))


def indexed(call: Call) -> None:
    """Chosen entries: along other dimensions than the channels'."""
    source = call.args.get("self")
    labels = call.read(source)
    if labels is None:
        return
    indices = call.args.get("indices")
    dims = dims_of(call.args.get("dims" if call.name == "roll" else "dim"), labels.ndim)
    if indices:
        dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any(varies(labels, dim) for dim in dims) and has_channels(labels):
        call.forbid(compact(labels), f"are taken apart by their positions by {call}")
    elif call.name == "index":
        call.write(torch.ops.aten.index(labels, indices))
    elif call.name == "roll":
        call.write(labels)
    elif call.name == "index_select":
        call.write(labels.index_select(dims[0], call.args["index"]))
    else:
        call.write(labels.gather(dims[0], call.args["index"]))


def pixel_unshuffle(call: Call) -> None:
    """Each channel becomes several, one after the other."""
    labels = call.read(call.args["self"])
    if labels is not None:
        labels = compact(labels, range(labels.ndim - 2, labels.ndim))
        factor = call.args["downscale_factor"] ** 2
        if labels.shape[-2:].numel() != 1:
            unknown(call)
        else:
            call.write(labels.repeat_interleave(factor, labels.ndim - 3))


def unfolded(call: Call) -> None:
    """Windows: each channel becomes kernel area many, one after the other."""
    labels = call.read(call.args["self"])
    vector = None if labels is None else channel_vector(labels, labels.ndim - 3)
    if vector is None:
        unknown(call)
    else:
        area = math.prod(call.args["kernel_size"])
        call.write(vector.repeat_interleave(area)[:, None].expand(call.outs[0].shape))
