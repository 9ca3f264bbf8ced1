"""What each operation of PyTorch does to channels: one rule a kind of operation, over the labels of its tensors.

A channel can be removed where every tensor that holds it holds it as whole slices along one dimension, and every
operation treats these slices alike wherever they stand. A rule passes labels on, links what must go together, or
says what stands in the way. Operations without a rule stand in the way of all channels that they read.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scap.pruning.ledger import Ledger
from scap.pruning.modules import Modules
from scap.pruning.shadow import Shadow, compact, has_channels, varies, varying

# fmt: off
ELEMENTWISE = {
    "clone", "_to_copy", "copy_", "lift_fresh", "lift_fresh_copy", "hardswish", "hardswish_", "_prelu_kernel", "native_dropout",
    "where", "masked_fill", "masked_fill_", "log_sigmoid_forward", "rrelu_with_noise", "rrelu_with_noise_", "contiguous",
}
OVERWRITES = {"fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"}
OF_SHAPES = re.compile("(empty|zeros|ones|full|rand|randn|randint)_like|new_.*|size|sym_.*|is_.*|stride|numel|bernoulli")
SLICES = {"slice", "split", "split_with_sizes", "select", "unbind", "narrow", "chunk", "unfold", "diagonal"}
RESHAPES = {"view", "_unsafe_view", "reshape", "unflatten", "_reshape_alias"}
REDUCTIONS = {
    "mean", "sum", "nansum", "amax", "amin", "max", "min", "median", "nanmedian", "var", "std", "var_mean", "std_mean", "prod",
    "norm", "linalg_vector_norm", "logsumexp", "any", "all", "argmax", "argmin", "aminmax", "count_nonzero",
}
ALONG = {
    "_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", 
    "topk", "kthvalue", "mode",
}
# fmt: on
SPATIAL = re.compile(
    r"_?(adaptive_)?(max|avg)_pool(\d)d.*|_?upsample_\w+?(\d)d.*|(reflection|replication)_pad(\d)d|grid_sampler_(\d)d"
)
LARGE = 1_000_000  # entries of a parameter beyond which they are not followed one by one
BATCH_NORM = re.compile(r"(_?native|cudnn|miopen|_)_?batch_norm\w*")


@dataclass
class Call:
    """One operation that has just run."""

    name: str
    pointwise: bool
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
        fixed = torch.tensor(block.start, dtype=torch.int32)
        if labels is not None and not has_channels(labels) and labels.numel() < LARGE:
            self.ledger.link(labels, fixed.to(labels.device).expand(labels.shape))
        for out in self.outs:
            self.shadow.write(out, fixed.expand(out.shape))

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        found = []
        for value in self.args.values():
            items = value if isinstance(value, list | tuple) else [value]
            found += [item for item in items if isinstance(item, Tensor)]
        return found

    def __str__(self) -> str:
        return f"{self.name.strip('_')!r} in {self.modules.words()}"


Rule = Callable[[Call], None]


def follow(call: Call) -> None:
    """Give the outputs of `call` their labels, note links and obstacles."""
    if call.name in OVERWRITES:
        call.write(torch.zeros([1] * call.outs[0].ndim, dtype=torch.int32))
    elif OF_SHAPES.fullmatch(call.name) is None and any(call.shadow.holds(tensor) for tensor in call.tensors()):
        _rule(call)(call)


def _rule(call: Call) -> Rule:
    name = call.name
    if call.pointwise or name in ELEMENTWISE or (name in ("max", "min") and "other" in call.args):
        return elementwise
    for names, rule in ((SLICES, slices), (RESHAPES, reshapes), (REDUCTIONS, reduction), (ALONG, along)):
        if name in names:
            return rule
    if SPATIAL.fullmatch(name):
        return spatial
    if BATCH_NORM.fullmatch(name):
        return batch_norm
    return RULES.get(name) or (same_memory if _shares_memory(call) else unknown)


def _shares_memory(call: Call) -> bool:
    own = {out.untyped_storage()._cdata for out in call.outs}
    return bool(own) and own <= {tensor.untyped_storage()._cdata for tensor in call.tensors()}


def same_memory(call: Call) -> None:
    """Views keep the labels of their memory; those that move windows or diagonals are not followed."""
    if call.name.startswith(("as_strided", "unfold")):
        unknown(call)


def unknown(call: Call) -> None:
    """No rule: what it reads stays."""
    for tensor in call.tensors():
        labels = call.read(tensor) if call.shadow.holds(tensor) else None
        if labels is not None:
            call.forbid(compact(labels), f"are read by {call}, which SCAP cannot cut")
    call.close()


def elementwise(call: Call) -> None:
    """Entries that meet go together, but where one is broadcast over the other's channels."""
    operands = [call.args["src"]] if call.name == "copy_" else call.tensors()
    labels: Tensor | None = None
    shape = call.outs[0].shape if call.outs else torch.Size()
    for operand in operands:
        own = call.read(operand)
        if own is not None and len(shape) >= own.ndim:
            own = own.expand(shape)
            labels = own if labels is None else join(call, labels, own)
    if labels is not None:
        call.write(labels)
    elif call.name == "copy_":
        call.write(torch.zeros([1] * len(shape), dtype=torch.int32))


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
    if part and any(varies(labels, dim) for dim in dims) and has_channels(labels):
        call.ledger.forbid(compact(labels), f"are taken apart by their positions by {call}")


def reshapes(call: Call) -> None:
    """A view that spreads channels over two dimensions: what is left after a removal is no block any more."""
    before, after = call.read(call.args["self"]), call.read(call.outs[0])
    if before is None or after is None or not has_channels(after):
        return
    if len(varying(after)) > max(1, len(varying(before))):
        call.ledger.forbid(compact(after), f"are arranged in groups by {call}")


def reduction(call: Call) -> None:
    """One value for many: they must all be of one channel."""
    labels = call.read(call.args.get("self", call.args.get("input")))
    if labels is None:
        return
    dims = _dims(call.args.get("dim"), labels.ndim)
    if any(varies(labels, dim) for dim in dims):
        call.forbid(compact(labels), f"are mixed by {call}")
        return
    for dim in dims:
        labels = labels.narrow(dim, 0, min(1, labels.size(dim)))
    for out in call.outs:
        if labels.numel() == out.numel():
            call.shadow.write(out, labels.reshape(out.shape))


def _dims(given: Any, ndim: int) -> list[int]:
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
    if _keeps_shape(call, labels, list(last), f"are normalised together by {call}"):
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
    dims = (
        [dim for dim, index in enumerate(indices) if index is not None] if indices else _dims(call.args.get("dim"), labels.ndim)
    )
    if call.name == "roll":
        dims = _dims(call.args.get("dims"), labels.ndim)
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


def channel_vector(labels: Tensor, dim: int) -> Tensor | None:
    """The label of each place along `dim`; None where they vary along another dimension, too."""
    small = compact(labels, (other for other in range(labels.ndim) if other != dim))
    return small.flatten() if small.numel() == small.size(dim) else None


RULES: dict[str, Rule] = {
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "constant_pad_nd": constant_pad,
    "cat": concatenation,
    "stack": concatenation,
    "repeat": repeated,
    "flip": repeated,
    "index": indexed,
    "index_select": indexed,
    "gather": indexed,
    "roll": indexed,
    "pixel_unshuffle": pixel_unshuffle,
    "im2col": unfolded,
}
