"""Cuts parameters and buffers of a network to the slices that stay."""

import torch
from torch import Tensor, nn

from scap.models.layers import replace_tensors
from scap.pruning.channels.graph import Slices


def cut(network: nn.Module, slices: Slices) -> nn.Module:
    """Replace the tensors of `network` named in `slices` by what stays of them; tied ones stay tied. Returns the network."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    smaller: dict[str, Tensor] = {}
    for (name, dim), kept in slices.items():
        tensor = smaller.get(name, tensors[name].detach())
        smaller[name] = tensor.index_select(dim, torch.as_tensor(kept, device=tensor.device))
    replace_tensors(network, {id(tensors[name]): _like(tensor, tensors[name]) for name, tensor in smaller.items()})
    return network


def _like(smaller: Tensor, tensor: Tensor) -> Tensor:
    """`smaller` as the parameter or buffer that `tensor` is."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        smaller = smaller.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(smaller, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else smaller
