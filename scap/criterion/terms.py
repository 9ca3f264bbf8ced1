"""The terms of a channel's importance: one function each, whose parameters say what it needs.

    weight       the convolution's weight, (K, C, h, w) float64
    outputs      its output activations Y on the calibration images, (N, K, H', W')
    autoencoder  the fidelities of its channels by the layer's autoencoder, (K,)
    layer, seed  its name, and the seed of the criterion
    network, images, layers    the whole network: such a term is called once and gives a value for every layer

To add a term: write its function here, list it in TERMS and test it (tests/unit/criterion/test_terms.py); `python -m
workflow.documents` gives it a line in docs/method.md. Imports no torch at the top: the workflow asks what a term needs before
any job.
"""

import inspect
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Values = NDArray[np.float64]


def fidelity(autoencoder: Values) -> Values:
    """F_k: how faithfully the layer's autoencoder reconstructs a channel's spectra; its importance is 1 − F_k (equation 9)."""
    return autoencoder


def l1(weight: Values) -> Values:
    """‖W_k‖₁ of the filter (equation 10)."""
    return np.abs(weight).sum(axis=tuple(range(1, weight.ndim)))


def rms(outputs: "Tensor") -> Values:
    """Root mean square of the output activation."""
    return np.sqrt(second_moments(outputs).diagonal().clip(0))


def novelty(outputs: "Tensor") -> Values:
    """RMS of what a channel adds to those chosen before it.

    Channels are chosen one by one, the one of the largest remainder first; then its linear part is taken out of all others:
    Cholesky's factorisation with pivots, or greedy column subset selection (equation 13).
    """
    left = second_moments(outputs)
    found, open_channels = np.zeros(len(left)), np.ones(len(left), dtype=bool)
    smallest = left.diagonal().max() * len(left) * np.finfo(left.dtype).eps  # below it: rounding
    for _ in range(len(left)):
        remainder = np.where(open_channels, left.diagonal(), -1.0)
        channel = int(remainder.argmax())
        if remainder[channel] <= smallest:
            break
        found[channel], open_channels[channel] = np.sqrt(remainder[channel]), False
        left = left - np.outer(left[:, channel], left[channel]) / left[channel, channel]
    return found


def random(weight: Values, layer: str, seed: int) -> Values:
    """Uniform in [0, 1) by (seed, layer): a control."""
    return np.random.default_rng([seed, zlib.crc32(layer.encode())]).random(len(weight))


def conditional(network: "nn.Module", images: "Tensor", layers: Sequence[str]) -> dict[str, Values]:
    """Relative error of the next layer when the channel goes and those that stay replace it (equation 14)."""
    return _conditional(network, images, layers, "channelwise")


def conditional_spectral(network: "nn.Module", images: "Tensor", layers: Sequence[str]) -> dict[str, Values]:
    """The same, where those that stay may replace it by another factor at each frequency (equation 15)."""
    return _conditional(network, images, layers, "spectral")


def conditional_taps(network: "nn.Module", images: "Tensor", layers: Sequence[str]) -> dict[str, Values]:
    """The same, where those that stay may replace it by another factor at each tap of the kernel (equation 16)."""
    return _conditional(network, images, layers, "taps")


def _conditional(network: "nn.Module", images: "Tensor", layers: Sequence[str], form: str) -> dict[str, Values]:
    from scap.criterion.conditional import conditional_scores

    return conditional_scores(network, images, layers, form=form)


def second_moments(outputs: "Tensor", batch_size: int = 16) -> Values:
    """Mean product Y_j·Y_k of output activations (N, K, H, W) over images and positions, (K, K) float64."""
    channels = outputs.shape[1]
    total = np.zeros((channels, channels))
    for batch in outputs.split(batch_size):
        columns = batch.transpose(0, 1).flatten(1).double()
        total += (columns @ columns.T).cpu().numpy()
    return total / (outputs.shape[0] * outputs.shape[2:].numel())


TERMS: dict[str, Callable] = {
    function.__name__.replace("_", "-"): function
    for function in (fidelity, l1, rms, novelty, random, conditional, conditional_spectral, conditional_taps)
}
REDUNDANCY = frozenset({"fidelity"})  # terms that are high where a channel is redundant: 1 − value is its importance
# Terms on a scale of their own in [0, 1]; the others are stretched to it over each layer.
RAW = frozenset({"random", "conditional", "conditional-spectral", "conditional-taps"})


@cache
def needs(term: str) -> frozenset[str]:
    """What a term needs: the names of its function's parameters."""
    return frozenset(inspect.signature(TERMS[term]).parameters)
