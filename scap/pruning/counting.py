"""Multiply-accumulate operations and parameters of a network, by torch.utils.flop_counter.

Convention: 1 MAC = 1 FLOP, as in tables of the pruning literature; torch counts 2 FLOPs for a MAC. Everything that
multiplies matrices counts: convolutions, linear layers, attention, other matrix products. Biases, batch norm,
activations and pooling do not.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, first_tensor, fitted, run
from scap.pruning.copies import copied, first_line, undisturbed


def count_operations(network: nn.Module, example: Example) -> dict[str, int]:
    """Exact `macs` for one image and `params` (all trainable tensors, batch norm's included) of `network`.

    `example`, a tensor (N, channels, height, width) or a tuple or dict of all arguments, gives the size of the images;
    N does not change the result. Raises ScapError where the network does not run on it.
    """
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"macs": _macs(network, example)["Global"], "params": params}


def layer_macs(network: nn.Module, example: Example) -> dict[str, int]:
    """MACs for one image of each convolution and linear layer by module path, in the order of the network.

    A layer used several times counts each time, an unused one 0. Matrix products outside of these layers (attention) are
    in count_operations alone. `network` is not altered.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, _ConvNd | nn.Linear)]
    counted = _macs(network, example)
    root = type(network).__name__
    return {name: counted.get(f"{root}.{name}" if name else root, 0) for name in layers}


def _macs(network: nn.Module, example: Example) -> dict[str, int]:
    """MACs for one image by module (the network's class name, then the path), and of all as "Global"."""
    images = len(first_tensor(example)) if first_tensor(example).ndim else 1
    network = copied(network).eval()
    with _every_product_seen(network), FlopCounterMode(display=False) as counter:
        try:
            run(network, fitted(example, *device_and_precision(network)))
        except Exception as error:  # the user's forward may raise anything
            raise ScapError(f"the network does not run on an example {described(example)}: {first_line(error)}") from error
    counts = {name: sum(flops.values()) // 2 // images for name, flops in counter.get_flop_counts().items()}
    return {"Global": 0} | counts


@contextmanager
def _every_product_seen(network: nn.Module) -> Iterator[None]:
    """Without gradients and without fused kernels that the counter has no formula for (attention, recurrent layers)."""
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))  # attention one product after the other
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
