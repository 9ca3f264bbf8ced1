"""In which order a network's weights and images lie in memory: the one place that chooses."""

import torch
from torch import nn

# Input channels from which a strided 1x1 convolution is safe in channels-last order on a CPU. With torch 2.13 on AVX2 the
# backward pass with 1 to 7 of them writes outside its memory, with 8 and more (one vector of AVX2) it is right; 16 are one
# vector of AVX-512.
SAFE_CHANNELS = 16


def _crashes_channels_last(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.in_channels >= SAFE_CHANNELS:
        return False
    return module.kernel_size == (1, 1) and module.stride != (1, 1)


def memory_format(network: nn.Module, device: torch.device | str) -> torch.memory_format:
    """Channels last, which is faster, or contiguous where oneDNN (on the CPU) cannot differentiate `network` in it."""
    if torch.device(device).type == "cpu" and any(map(_crashes_channels_last, network.modules())):
        return torch.contiguous_format
    return torch.channels_last
