"""The representations that do not factorise: |S| and its logarithm, evaluated directly, in bounded memory.

The same interface as the blocks of scap.criterion.projections. A block builds the spectra of some pairs (n, k) from the
cached ones.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from scap.criterion.projections import EPSILON
from scap.criterion.spectra import Spectra


class MagnitudeBlock:
    """r(S) = |S| or log(1 + |S|/RMS): the spectra of some pairs (n, k), built from the cached ones of X and Y."""

    def __init__(self, spectra: Spectra, representation: str) -> None:
        layout = spectra.layout
        x, y = spectra.inputs[:, None], spectra.outputs[:, :, None]
        own, freq = slice(0, layout.real), layout.frequencies
        square = x[..., own].square() + y[..., own].square()
        x_re, x_im, y_re, y_im = (t[..., part] for t in (x, y) for part in (slice(layout.real, freq), slice(freq, None)))
        plus = ((x_re - y_im).square() + (x_im + y_re).square()) / 2  # |S(f)|²; the coordinates carry √2
        minus = ((x_re + y_im).square() + (y_re - x_im).square()) / 2  # |S(-f)|²
        power = torch.cat([square, plus, minus], dim=-1)
        values = magnitudes(power, representation, dims=(-2, -1)).flatten(2)
        self.norm = values.square().sum(-1).sqrt().clamp_min(EPSILON)
        self.values = values / self.norm[..., None]

    def project(self, rows: Tensor) -> Tensor:
        """⟨row, s_nk⟩ of rows (R, C, H·W), (R, n, K)."""
        return (rows.flatten(1) @ self.values.flatten(0, 1).T).unflatten(1, self.norm.shape)


def magnitude_blocks(spectra: Spectra, representation: str, workspace: int) -> Iterator[MagnitudeBlock]:
    """Blocks of single images and as many output channels as fit into `workspace` bytes (at least one)."""
    pair = 4 * spectra.inputs[0].numel() * 6  # float32, and about six copies while the magnitudes are made
    step = max(1, workspace // pair)
    for n in range(spectra.images):
        for k in range(0, spectra.channels, step):
            part = replace(spectra, inputs=spectra.inputs[n : n + 1], outputs=spectra.outputs[n : n + 1, k : k + step])
            yield MagnitudeBlock(part, representation)


def magnitudes(power: Tensor, representation: str, dims: tuple[int, ...]) -> Tensor:
    """|S|, or log(1 + |S|/RMS) with the RMS over `dims` (which makes it invariant under scaling), from |S|²."""
    if representation == "magnitude":
        return power.sqrt()
    mean = power.mean(dims, keepdim=True)
    return (power / torch.where(mean > 0, mean, 1)).sqrt().log1p()
