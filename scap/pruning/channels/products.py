"""Rules of the operations that have weights: convolutions and matrix products. They end channels and begin new ones."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scap.pruning.channels.calls import HEADS, Call, channel_vector, unknown
from scap.pruning.channels.ledger import Block
from scap.pruning.channels.modules import one_matrix
from scap.pruning.channels.shadow import compact, has_channels


def convolution(call: Call) -> None:
    """Reads its input's channels by slices of its weight; its output's channels are slices along the other dimension."""
    weight, transposed, groups = call.args["weight"], call.args["transposed"], call.args["groups"]
    name = call.modules.name(weight)
    if name is None:
        return _computed(call, call.args["input"])
    out_dim = int(transposed)
    rows = call.ledger.block("rows", name, out_dim, weight.size(out_dim))
    labels = call.read(call.args["input"])
    if groups == 1:
        _read_by(call, labels, name, 1 - out_dim, weight.size(1 - out_dim))
    elif groups == call.args["input"].size(1) and not transposed:
        _depthwise(call, labels, rows, groups)
    else:
        _read_by(call, labels, name, 1 - out_dim, call.args["input"].size(1), kind="grouped")
    _gives(call, rows, call.args["bias"], repeats=groups if transposed else 1)


def _depthwise(call: Call, labels: Tensor | None, rows: Block, groups: int) -> None:
    vector = None if labels is None else channel_vector(labels, 1)
    if vector is not None:
        own = torch.arange(rows.start, rows.start + rows.size, device=vector.device)
        call.ledger.link(vector.repeat_interleave(rows.size // groups), own)
    elif labels is not None:
        call.ledger.forbid(compact(labels), f"are mixed by {call}")


def matrix_product(call: Call) -> None:
    """A linear layer: its weight is the second matrix, as it is or transposed, the same one for a whole batch."""
    first, second = (call.args[key] for key in (("mat1", "mat2") if call.name == "addmm" else ("self", "mat2")))
    second = one_matrix(second)
    as_stored = call.modules.name(second)
    name = as_stored or call.modules.name(second.mT)
    if name is None or not _is_linear(call, name):
        return _computed(call, first, second) if name is None else unknown(call)
    in_dim = 0 if as_stored else 1
    labels = call.read(first)
    _read_by(call, labels, name, in_dim, second.size(0))
    rows = call.ledger.block("rows", name, 1 - in_dim, second.size(1))
    _gives(call, rows, call.args.get("self") if call.name == "addmm" else None)


def _is_linear(call: Call, name: str) -> bool:
    owner = call.modules.owner(name)
    return isinstance(owner, nn.Linear | _ConvNd) or not type(owner).__module__.startswith("torch.nn")


def _computed(call: Call, *operands: Tensor) -> None:
    """A product of two results: nothing that surgery could cut to fit."""
    reason = f"are read by {call}, a product with no weight of its own{f': {HEADS}' if call.attends else ''}"
    if names := [name for operand in operands for name in call.modules.names_in(operand)]:
        reason = f"are multiplied by {names[0]!r} in {call}, which SCAP cannot cut; a linear layer or a convolution it can"
    if words := call.modules.remedy():
        reason = f"are read by a layer whose weight is computed: {words}"
    for operand in operands:
        labels = call.read(operand) if call.shadow.holds(operand) else None
        if labels is not None:
            call.ledger.forbid(compact(labels), reason)
    call.close()


def _read_by(call: Call, labels: Tensor | None, name: str, dim: int, size: int, kind: str = "columns") -> None:
    if labels is None:
        return
    vector = channel_vector(labels, _channels_at(call, labels))
    if vector is None:
        if has_channels(labels):
            call.ledger.forbid(compact(labels), f"are read by {layer_of(name)!r} along another dimension")
        return
    columns = call.ledger.block(kind, name, dim, size)
    call.ledger.link(vector, torch.arange(columns.start, columns.start + size, device=vector.device))


def _gives(call: Call, rows: Block, bias: Tensor | None, repeats: int = 1) -> None:
    device = call.outs[0].device if not call.outs[0].is_meta else torch.device("cpu")
    own = torch.arange(rows.start, rows.start + rows.size, dtype=torch.int32, device=device).repeat(repeats)
    added = call.read(bias) if bias is not None else None
    if added is not None and added.shape == own.shape:
        call.ledger.link(own, added)
    out = call.outs[0]
    dim = _channels_at(call, out)
    call.shadow.write(out, own.view([-1 if d == dim else 1 for d in range(out.ndim)]).expand(out.shape))


def _channels_at(call: Call, tensor: Tensor) -> int:
    """The dimension of the channels of what a product reads or gives."""
    return 1 if call.name == "convolution" else tensor.ndim - 1


def layer_of(parameter: str) -> str:
    """The module that a parameter belongs to; of a parameter of the network itself "" for `weight`, else its own name."""
    return parameter.rpartition(".")[0] or ("" if parameter == "weight" else parameter)
