"""What each operation of PyTorch does to channels: one rule a kind of operation, over the labels of its tensors.

A channel can be removed where every tensor that holds it holds it as whole slices along one dimension, and every
operation treats these slices alike wherever they stand. A rule passes labels on, links what must go together, or
says what stands in the way. Operations without a rule stand in the way of all channels that they read.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from scap.pruning.channels.calls import Call, join, unknown
from scap.pruning.channels.mixing import SPATIAL, along, batch_norm, group_norm, layer_norm, reduction, spatial
from scap.pruning.channels.moves import (
    concatenation,
    constant_pad,
    indexed,
    pixel_unshuffle,
    repeated,
    reshapes,
    slices,
    unfolded,
)

# fmt: off
ELEMENTWISE = {
    "clone", "_to_copy", "copy_", "lift_fresh", "lift_fresh_copy", "hardswish", "hardswish_", "_prelu_kernel", "native_dropout",
    "where", "masked_fill", "masked_fill_", "log_sigmoid_forward", "rrelu_with_noise", "rrelu_with_noise_", "contiguous",
}
IN_PLACE_VIEWS = {"squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "detach_", "as_strided_", "set_"}
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
BATCH_NORM = re.compile(r"(_?native|cudnn|miopen|_)_?batch_norm\w*")


Rule = Callable[[Call], None]


def follow(call: Call) -> None:
    """Give the outputs of `call` their labels, note links and obstacles."""
    if call.name in OVERWRITES:
        call.write(torch.zeros([1] * call.outs[0].ndim, dtype=torch.int32, device="cpu"))
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
    if name in RULES:
        return RULES[name]
    return view if name in IN_PLACE_VIEWS or (_shares_memory(call) and not call.mutates and name != "as_strided") else unknown


def _shares_memory(call: Call) -> bool:
    own = {out.untyped_storage()._cdata for out in call.outs}
    return bool(own) and own <= {tensor.untyped_storage()._cdata for tensor in call.tensors()}


def view(call: Call) -> None:
    """Labels belong to the memory: a view of it has them already."""


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
        call.write(torch.zeros([1] * len(shape), dtype=torch.int32, device="cpu"))


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
