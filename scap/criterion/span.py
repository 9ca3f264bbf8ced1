"""For `complex`, a layer's inputs in N coordinates instead of C·H·W (docs/method.md, section 4.4).

The inputs enter a projection only through inner products with rows, and a row that training or power iteration moves from
the span of the N input spectra stays in it. An orthonormal basis of this span, from the N×N Gram matrix, is therefore all
that an autoencoder needs; afterwards its rows are written out in the coordinates of the spectra again. Exact, not an
approximation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scap.criterion.projections import panels
from scap.criterion.spectra import Spectra

CHUNK = 4096  # coordinates of the inputs that are held in float64 at a time
MOST = 2048  # images up to which the eigenvectors of their Gram matrix, N³, cost less than they save
RANK = 1e-12  # eigenvalues of the Gram matrix below this share of the largest are rounding


def worthwhile(spectra: Spectra) -> bool:
    """Whether the span has at most half as many dimensions as the inputs have coordinates, and few enough to find it."""
    return spectra.images <= min(MOST, spectra.inputs[0].numel() // 2)


@dataclass(frozen=True)
class Span:
    """`spectra` whose inputs are coordinates in their span, and the way back."""

    spectra: Spectra
    original: Spectra
    combination: Tensor  # (N, rank) float64: the basis is combinationᵀ · inputs

    def expand(self, rows: Tensor) -> Tensor:
        """Rows (R, w + 1, H·W) in the span as rows (R, C + 1, H·W) in the coordinates of the spectra."""
        inside = rows[:, :-1].flatten(1)[:, : self.combination.shape[1]].double()
        weights = inside @ self.combination.T
        inputs = torch.cat([(weights @ part).to(rows.dtype) for part in _chunks(self.original)], dim=1)
        return torch.cat([inputs.unflatten(1, self.original.inputs.shape[1:]), rows[:, -1:]], dim=1)


def span_of(spectra: Spectra) -> Span:
    """The span of the inputs of all images. Its coordinates are padded with zeros to w maps of H·W."""
    gram = spectra.inputs.new_zeros(spectra.images, spectra.images, dtype=torch.float64)
    for part in _chunks(spectra):
        for rows, columns in panels(spectra.images):  # eigh reads the lower triangle alone
            gram[rows, columns].addmm_(part[rows], part[columns].T)
    norm = gram.diagonal().sqrt()  # of unit spectra, so that a quiet image is as exact as a loud one
    divisor = torch.where(norm > 0, norm, 1)
    values, vectors = torch.linalg.eigh(gram / torch.outer(divisor, divisor))
    kept = values > RANK * values[-1]
    scale, vectors = values[kept].sqrt(), vectors[:, kept]
    coordinates = (norm[:, None] * vectors * scale).to(spectra.precision)
    size = spectra.layout.size
    padding = -coordinates.shape[1] % size or size * (coordinates.shape[1] == 0)
    inputs = torch.nn.functional.pad(coordinates, (0, padding)).unflatten(1, (-1, size))
    compact = replace(spectra, inputs=inputs, copies=spectra.input_channels)
    return Span(compact, spectra, vectors / scale / divisor[:, None])


def _chunks(spectra: Spectra) -> Iterator[Tensor]:
    for part in spectra.inputs.flatten(1).split(CHUNK, dim=1):
        yield part.to(spectra.precision).double()  # from float16 in two steps, in two thirds of the time
