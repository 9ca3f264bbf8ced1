"""Cuts parameters and buffers of a network to the slices that stay."""

from itertools import chain

import torch
from torch import Tensor, nn

from scap.models.layers import replace_tensors
from scap.pruning.channels.graph import Slices


def cut(network: nn.Module, slices: Slices) -> nn.Module:
    """Replace the tensors of `network` named in `slices` by what stays of them; tied ones stay tied. Returns the network."""
    every = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    tensors: dict[str, Tensor] = dict(every)
    smaller = {id(tensors[name]): tensors[name].detach() for name, _ in slices}
    for (tensor, dim), kept in {(id(tensors[name]), dim): kept for (name, dim), kept in slices.items()}.items():
        smaller[tensor] = smaller[tensor].index_select(dim, torch.as_tensor(kept, device=smaller[tensor].device))
    replace_tensors(network, {id(tensors[name]): _like(smaller[id(tensors[name])], tensors[name]) for name, _ in slices})
    return network


def _like(smaller: Tensor, tensor: Tensor) -> Tensor:
    """`smaller` as the parameter or buffer that `tensor` is."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        smaller = smaller.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(smaller, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else smaller
