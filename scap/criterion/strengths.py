"""How strong an output channel is on the calibration images, alone and beyond what other channels tell: no autoencoder."""

import torch
from torch import Tensor


def second_moments(outputs: Tensor, batch_size: int = 16) -> Tensor:
    """Mean product Y_j·Y_k of output activations (N, K, H, W) over images and positions, (K, K) float64 on the CPU."""
    total = torch.zeros(outputs.shape[1], outputs.shape[1], dtype=torch.float64)
    for batch in outputs.split(batch_size):
        columns = batch.transpose(0, 1).flatten(1).double()
        total += (columns @ columns.T).cpu()
    return total / (outputs.shape[0] * outputs.shape[2:].numel())


def rms(moments: Tensor) -> Tensor:
    """Root mean square of every channel, (K,), from the second moments (K, K)."""
    return moments.diagonal().clamp_min(0).sqrt()


def novelty(moments: Tensor) -> Tensor:
    """RMS of what a channel adds to those chosen before it, (K,), from the second moments (K, K).

    Channels are chosen one by one, the one of the largest remainder first; then its linear part is taken out of all others:
    Cholesky's factorisation with pivots, or greedy column subset selection (docs/method.md, equation 13).
    """
    left, found = moments.clone(), torch.zeros(len(moments), dtype=moments.dtype)
    open_channels = torch.ones(len(moments), dtype=torch.bool)
    smallest = moments.diagonal().max() * len(moments) * torch.finfo(moments.dtype).eps  # below it: rounding
    for _ in range(len(moments)):
        remainder = left.diagonal().where(open_channels, -1.0)
        channel = int(remainder.argmax())
        if remainder[channel] <= smallest:
            break
        found[channel], open_channels[channel] = remainder[channel].sqrt(), False
        left = left - torch.outer(left[:, channel], left[channel]) / left[channel, channel]
    return found


STRENGTHS = {"rms": rms, "novelty": novelty}  # by the names of `magnitude_of`
