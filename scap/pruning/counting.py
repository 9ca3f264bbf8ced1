"""Multiply-accumulate operations and parameters of a network.

Convention: 1 MAC = 1 FLOP, as in tables of the pruning literature (torch.utils.flop_counter counts 2).
Convolution and linear modules only; biases, batch norm, activations and pooling do not count as operations.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def count_operations(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Exact `macs` for one image and `params` (all trainable tensors, batch norm's included) of `network`.

    `example` (N, channels, height, width) gives the size of the images; N does not change the result.
    """
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"macs": sum(layer_macs(network, example).values()), "params": params}


def layer_macs(network: nn.Module, example: Tensor) -> dict[str, int]:
    """MACs for one image of each convolution and linear layer by module path, in the order of the network.

    Every output value of a convolution costs (input channels / groups) x kernel area, one of a linear layer
    its input width. A layer used several times counts each time, an unused one 0. `network` is not altered.
    """
    network = copy.deepcopy(network).eval()
    modules = network.named_modules()
    counted = {name: module for name, module in modules if isinstance(module, _ConvNd | nn.Linear)}
    macs = dict.fromkeys(counted, 0)
    for name, module in counted.items():
        module.register_forward_hook(_adder(macs, name, len(example)))
    with torch.no_grad():
        network(example)
    return macs


def _adder(macs: dict[str, int], name: str, images: int) -> Callable[..., None]:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        macs[name] += _macs(module, args[0], output) // images

    return add


def _macs(module: nn.Module, values: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    # The weights that one output value reads or, in a transposed convolution, that one input value feeds.
    kernel = module.get_parameter("weight")[0].numel()
    return (values if isinstance(module, _ConvTransposeNd) else output).numel() * kernel
