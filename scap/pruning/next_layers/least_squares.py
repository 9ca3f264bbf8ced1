"""Weights that let the inputs which stay give a layer's outputs best (docs/conditional.md, equations C7 to C9)."""

from typing import NamedTuple

import torch
from torch import Tensor

from scap.errors import ScapError
from scap.pruning.next_layers.moments import Moments

RIDGE = 1e-2  # of `full`, towards the channelwise solution, as a share of the mean variance of an input; its square of that one
TRAINED_RIDGE = 1e-1  # of a network that is trained on
LARGEST_RIDGE = 1e6  # beyond it nothing but the ridge would be left
REFINEMENTS = 4  # of the channelwise solution: each takes a share λ/(λ + eigenvalue) of what the ridge left


class Fit(NamedTuple):
    """One group's new weights, and the squared errors of its outputs on the calibration images."""

    weights: Tensor  # (O, D')
    bias: Tensor  # (O,)
    energy: float  # mean square of the original outputs without their bias, summed over outputs
    before: float  # mean squared error of the plain cut
    after: float


class Target(NamedTuple):
    """What is fitted: a group of a consumer with its original weights."""

    weights: Tensor  # (O, D) original, of the outputs that stay
    bias: Tensor  # (O,) original
    kept: Tensor  # (D',) columns that stay
    old: Tensor  # (R, b) columns of each original channel
    new: Tensor  # (R', b) columns, among those that stay, of each channel that stays
    scale: Tensor  # (O,) slopes by which errors are weighed


def fit(target: Target, inputs: Moments, channels: Moments, how: str, ridge: float, layer: str) -> Fit:
    """Weights and bias for the inputs that stay: `channelwise` or `full`.

    `inputs`: moments of [ũ, z], what is read now (D') beside the outputs wanted (O). `channels`: moments of [x̃, y],
    channels that stay as they are now (R') beside all original ones (R). The error never exceeds the plain cut's.
    """
    width = len(target.kept)
    mean, covariance = _centred(inputs, layer)
    gram, cross = covariance[:width, :width], covariance[width:, :width]
    scale = target.scale.square()

    def error(weights: Tensor) -> float:
        residual = covariance.diagonal()[width:] - ((2 * cross - weights @ gram) * weights).sum(1)
        return float((scale * residual).sum().clamp(min=0))

    cut = target.weights[:, target.kept]
    weights = _between(cut, _channelwise(target, channels, ridge**2, layer), gram, cross, scale)
    if how == "full":
        weights = weights + _solve(gram, ridge, cross - weights @ gram, layer)
    offset = target.bias + cut @ mean[:width] - mean[width:]
    energy = covariance.diagonal()[width:] + (mean[width:] - target.bias).square()
    bias = mean[width:] - weights @ mean[:width]
    before = error(cut) + float((scale * offset.square()).sum())
    return Fit(weights, bias, float((scale * energy).sum()), before, error(weights))


def _channelwise(target: Target, channels: Moments, ridge: float, layer: str) -> Tensor:
    """W·B per tap, where B = C_yx (C_xx + λI)⁻¹ reconstructs all channels from those that stay."""
    stay = len(target.new)
    covariance = _centred(channels, layer)[1]
    gram, cross = covariance[:stay, :stay], covariance[stay:, :stay]
    mixing = torch.zeros_like(cross)
    for _ in range(REFINEMENTS):
        mixing = mixing + _solve(gram, ridge, cross - mixing @ gram, layer)
    weights = target.weights.new_zeros(len(target.weights), len(target.kept))
    weights[:, target.new] = torch.einsum("ort,rs->ost", target.weights[:, target.old], mixing)
    return weights


def _between(cut: Tensor, other: Tensor, gram: Tensor, cross: Tensor, scale: Tensor) -> Tensor:
    """The best weights on the line from the plain cut to others: no worse than either."""
    step = other - cut
    length = float((scale[:, None] * (step @ gram) * step).sum())
    gain = float((scale[:, None] * (cross - cut @ gram) * step).sum())
    return cut + min(1.0, max(0.0, gain / length)) * step if length > 0 else cut


def _solve(gram: Tensor, ridge: float, right: Tensor, layer: str) -> Tensor:
    """right · (gram + ridge · mean diagonal · I)⁻¹, zero where nothing varies."""
    level = float(gram.diagonal().mean())
    if level <= 0:
        return torch.zeros_like(right)
    loaded = gram + ridge * level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    try:
        return torch.cholesky_solve(right.T, torch.linalg.cholesky(loaded)).T
    except torch.linalg.LinAlgError as error:
        raise ScapError(
            f"layer {layer!r}: the inputs that stay cannot be told apart; raise `ridge`, or use more images"
        ) from error


def _centred(moments: Moments, layer: str) -> tuple[Tensor, Tensor]:
    mean = moments.mean()
    return mean, moments.second(layer) - mean[:, None] * mean
