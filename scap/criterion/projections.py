"""Exact projections of the normalised spectra s_nk without ever building the field (docs/method.md, equations 4, 5 and 7).

A block holds a batch of images and gives, for every pair (image n, output channel k), the inner products of s_nk with
rows of the autoencoder: everything that training and scoring need. `complex` and `power` are factorised: work that
depends on the image alone is done once per image, not once per pair. `scap.criterion.reference` is the same interface,
built directly.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from scap.criterion.spectra import Layout, Spectra

EPSILON = 1e-16  # of a norm: a field that is exactly zero gives s = 0 instead of NaN, and the sum of all 1/norm² is finite
SAFE = 8  # fourth powers of numbers between 2^-8 and 2^8, and of those that are much smaller, are far from float32's bounds
LONG, PIECE = 2**15, 2**10  # coordinates up to which float32 sums well enough, and those of a part of a longer sum
MAPS = 64  # channels of a part of a sum over input channels
PANEL = 120  # rows of a symmetric matrix that are made at a time; a multiple of the tiles of matrix products


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """⟨row, other⟩ of rows (R, D) and others (n, D), (R, n).

    A loss is a small difference of such products, and float32 alone would lose three digits of a wide layer's: long sums are
    those of their parts, in float64.
    """
    return rows @ others.T if rows.shape[1] <= LONG else _LongProduct.apply(rows, others)


def panels(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the parts of a symmetric matrix (size, size) that cover its lower triangle."""
    for start in range(0, size, PANEL):
        yield slice(start, start + PANEL), slice(0, start + PANEL)


class _LongProduct(torch.autograd.Function):
    """rows·othersᵀ by parts; its backward is that of the plain product."""

    @staticmethod
    def forward(rows: Tensor, others: Tensor) -> Tensor:
        whole = rows.shape[1] // PIECE * PIECE
        parts, other_parts = (each[:, :whole].unflatten(1, (-1, PIECE)).transpose(0, 1) for each in (rows, others))
        total = (parts @ other_parts.mT).sum(0, dtype=torch.float64)
        return (total + rows[:, whole:] @ others[:, whole:].T).to(rows.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, others = ctx.saved_tensors
        return gradient @ others, gradient.T @ rows if ctx.needs_input_grad[1] else None


def in_range(spectra: Spectra) -> Spectra:
    """The spectra, each image times the power of two that takes its largest number to [1/2, 1): no power of it overflows.

    Exact, and s_nk does not depend on it, as it is normalised. Where all images are within bounds nothing is done; on a GPU
    asking would cost more.
    """
    inputs, outputs = spectra.inputs.flatten(1), spectra.outputs.flatten(1)
    extremes = [inputs.amax(1), -inputs.amin(1), outputs.amax(1), -outputs.amin(1)]
    exponent = torch.frexp(torch.stack(extremes).amax(0)).exponent  # 0 where an image is black
    if spectra.inputs.is_cpu and not (exponent.abs() > SAFE).any():
        return spectra
    shift = -exponent.clamp(-126, 126)[:, None, None]  # beyond them the power itself is no float32
    return replace(spectra, inputs=torch.ldexp(spectra.inputs, shift), outputs=torch.ldexp(spectra.outputs, shift))


def balance_parts(spectra: Spectra) -> Spectra:
    """Both parts at unit RMS: X per image, Y per image and output channel (a silent channel stays silent)."""
    size = spectra.layout.size
    inputs = spectra.inputs / _rms(spectra.inputs, (1, 2), spectra.input_channels * size)
    outputs = spectra.outputs / _rms(spectra.outputs, (2,), size)
    return replace(spectra, inputs=inputs, outputs=outputs)


def _rms(values: Tensor, dims: tuple[int, ...], count: int) -> Tensor:
    mean_square = values.square().sum(dims, keepdim=True) / count
    return torch.where(mean_square > 0, mean_square, 1).sqrt()


class ComplexBlock:
    """r(S) = [Re S, Im S].

    In the half-plane coordinates of X and Y, S_k is (x, y_k, …, y_k): y_k stands C times. An orthonormal change of basis
    over those C copies leaves (x, √C·y_k) and zeros, so rows have C + 1 "channels", the last one for the broadcast part.
    """

    def __init__(self, spectra: Spectra) -> None:
        self.x, y = spectra.inputs, spectra.outputs
        copies = self.x.new_full((), spectra.input_channels**0.5)
        # ‖r(S_k)‖, (n, K): equation 4; the cross term 2 Re⟨X̂, iŶ⟩ vanishes over the whole plane, as X and Y are real
        energy = self.x.square().sum((1, 2))[:, None] + copies**2 * y.square().sum(2)
        self.norm = energy.sqrt().clamp_min(EPSILON)
        self.inverse = self.norm.reciprocal()
        self.broadcast = (y * (copies * self.inverse)[..., None]).flatten(0, 1)  # √C·y_k/‖r(S_k)‖, (n·K, H·W)

    def project(self, rows: Tensor) -> Tensor:
        """⟨row, s_nk⟩ of rows (R, C + 1, H·W), (R, n, K): equation 5."""
        return _Projection.apply(rows.flatten(1), self.x.flatten(1), self.broadcast, self.inverse)

    def add_second_moment(self, total: Tensor) -> None:
        """Add Σ s sᵀ over all pairs to `total` (D, D), D = (C + 1)·H·W."""
        x, y, square = self.x.flatten(1), self.broadcast.T, self.inverse.square()
        size = x.shape[1]
        cross = x.T @ (self.inverse[:, None] @ self.broadcast.unflatten(0, self.norm.shape))[:, 0]
        total[:size, :size] += x.T @ (x * square.sum(1, keepdim=True))
        total[:size, size:] += cross
        total[size:, :size] += cross.T
        of_y = total[size:, size:]
        for rows, columns in panels(len(y)):
            product = y[rows] @ y[columns].T
            of_y[rows, columns] += product
            of_y[: rows.start, rows] += product[:, : rows.start].T


class _Projection(torch.autograd.Function):
    """rows[:, :D]·xᵀ/norm + rows[:, D:]·broadcastᵀ for x (n, D); its backward writes the gradient of the rows in one piece.

    For slices, autograd would fill a tensor of the rows' size with zeros for each and add them up.
    """

    @staticmethod
    def forward(rows: Tensor, x: Tensor, broadcast: Tensor, inverse: Tensor) -> Tensor:
        size = x.shape[1]
        per_pair = (rows[:, size:] @ broadcast.T).unflatten(1, inverse.shape)
        return per_pair.addcmul_(inner_products(rows[:, :size], x)[:, :, None], inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, broadcast, inverse = ctx.saved_tensors
        rows = x.new_empty(len(gradient), x.shape[1] + broadcast.shape[1])
        per_image = (gradient.transpose(0, 1) @ inverse[:, :, None])[..., 0]  # (n, R)
        torch.mm(per_image.T, x, out=rows[:, : x.shape[1]])
        torch.mm(gradient.flatten(1), broadcast, out=rows[:, x.shape[1] :])
        return rows, None, None, None


class PowerBlock:
    """r(S) = |S|², which holds the input-output cross-spectrum.

    With a = |X̂|², b = |Ŷ|² and q = 2(Im X̂·Re Ŷ − Re X̂·Im Ŷ): |S(±f)|² = a + b ± q. In orthonormal coordinates a pair ±f is
    (√2(a + b), √2·q), and a self-conjugate frequency is a + b.
    """

    def __init__(self, spectra: Spectra) -> None:
        layout = spectra.layout
        self.real, self.frequencies, self.copies = layout.real, layout.frequencies, spectra.inputs.shape[1]
        self.x_power, x_re, x_im = _power_parts(spectra.inputs, layout)
        self.y_power, y_re, y_im = _power_parts(spectra.outputs, layout)
        self.y_odd = spectra.outputs[..., self.real :]  # √2·(Re Ŷ, Im Ŷ)
        # (Im X̂, −Re X̂) by frequency, (f, 2·n, C): a batched product wants each frequency's matrix in one piece
        self.x_odd = torch.cat([x_im, -x_re]).permute(2, 0, 1).contiguous()
        self.norm = self._norm(x_re, x_im, y_re, y_im)  # here, as what is kept between passes need not hold its parts

    def _norm(self, x_re: Tensor, x_im: Tensor, y_re: Tensor, y_im: Tensor) -> Tensor:
        """‖r(S_k)‖, (n, K): equation 7, from moments over c of X̂ per image and frequency."""
        weight, b = self._weight(2.0), self.y_power
        per_image = _over_channels(self.x_power.square()) @ weight.double()
        per_pair = self.copies * (b.square() @ weight)
        cross = 2 * _pairs(b, _over_channels(self.x_power) * weight)
        odd = _pairs(y_re.square(), _over_channels(x_im.square()))
        odd = odd + _pairs(y_im.square(), _over_channels(x_re.square()))
        odd = odd - 2 * _pairs(y_re * y_im, _over_channels(x_re * x_im))
        square = per_image[:, None] + (per_pair + cross + 8 * odd)
        return square.clamp_min(0).sqrt().to(b.dtype).clamp_min(EPSILON)

    def project(self, rows: Tensor) -> Tensor:
        """⟨row, s_nk⟩ of rows (R, C, H·W), (R, n, K): equation 7."""
        even, odd = rows.split([self.frequencies, rows.shape[2] - self.frequencies], dim=2)
        even = even * self._weight(2**0.5)
        per_image = inner_products(even.flatten(1), self.x_power.flatten(1))
        per_pair = even.sum(1) @ self.y_power.flatten(0, 1).T
        cross = (self.x_odd @ odd.permute(2, 1, 0).contiguous()).unflatten(1, (2, -1))  # (f, 2, n, R)
        cross = self.y_odd @ (2 * cross).permute(2, 1, 0, 3).flatten(1, 2)
        same = per_image[:, :, None] + per_pair.unflatten(1, self.norm.shape)
        return same.add_(cross.permute(2, 0, 1)).div_(self.norm)

    def _weight(self, of_pairs: float) -> Tensor:
        weight = self.x_power.new_ones(self.frequencies)
        weight[self.real :] = of_pairs
        return weight


def _power_parts(packed: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """|·|² at every independent frequency, and Re and Im at those that are not self-conjugate."""
    re = packed[..., layout.real : layout.frequencies] / 2**0.5
    im = packed[..., layout.frequencies :] / 2**0.5
    power = torch.cat([packed[..., : layout.real].square(), re.square() + im.square()], dim=-1)
    return power, re, im


def _over_channels(values: Tensor) -> Tensor:
    """Σ_c values[n, c, f], (n, F) float64: an error in it is one of all pairs of its image."""
    return reduce(Tensor.add_, (part.sum(1).double() for part in values.split(MAPS, dim=1)))


def _pairs(per_pair: Tensor, per_image: Tensor) -> Tensor:
    """Σ_f per_pair[n, k, f]·per_image[n, f], (n, K)."""
    return (per_pair @ per_image.to(per_pair.dtype)[..., None])[..., 0]
