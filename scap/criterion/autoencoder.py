"""One low-capacity autoencoder per layer, shared by all its channels (docs/method.md, equations 6 and 9)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scap.criterion.projections import ComplexBlock, PowerBlock, balance_parts, in_range, inner_products
from scap.criterion.settings import AutoencoderSettings
from scap.criterion.spectra import Layout, Spectra
from scap.criterion.spectral_magnitudes import magnitude_blocks
from scap.errors import DamagedFile
from scap.reading import PRECISE, open_tensors
from scap.tensors import save_tensors

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_, "identity": lambda h: h}
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # times a gradient, in place, from the value of the activation
    "tanh": lambda gradient, h: gradient.addcmul_(gradient * h, h, value=-1),
    "relu": lambda gradient, h: gradient.mul_(h > 0),
    "identity": lambda gradient, h: gradient,
}


class Block(Protocol):
    """A batch of pairs (image, output channel) that can be projected onto rows of an autoencoder."""

    def project(self, rows: Tensor) -> Tensor:
        """Inner products of rows (R, channels, H·W) with the normalised spectra, (R, n, K)."""
        ...


class Autoencoder(nn.Module):
    """ŝ = D·act(E·s + e) + b. `rows` (2d + 1, channels, H·W) holds E (d rows), then Dᵀ (d rows) and b."""

    def __init__(self, rows: Tensor, bias: Tensor, activation: str) -> None:
        super().__init__()
        self.rows, self.bias = nn.Parameter(rows), nn.Parameter(bias)
        self.activation = activation

    @property
    def bottleneck(self) -> int:
        """Bottleneck size d."""
        return self.bias.shape[0]

    @property
    def encoder(self) -> Tensor:
        """E, (d, channels, H·W)."""
        return self.rows[: self.bottleneck]

    @property
    def decoder(self) -> Tensor:
        """Dᵀ and, as last row, b: (d + 1, channels, H·W)."""
        return self.rows[self.bottleneck :]

    def code(self, projections: Tensor) -> Tensor:
        """(h, 1) from E·s: (d, …) -> (d + 1, …); the 1 carries the decoder's bias."""
        bias = self.bias.view(-1, *[1] * (projections.ndim - 1))
        hidden = ACTIVATIONS[self.activation](projections + bias)
        return torch.cat([hidden, torch.ones_like(hidden[:1])])

    @property
    def gram(self) -> Tensor:
        """Inner products of the decoder's rows, (d + 1, d + 1)."""
        flat = self.rows.flatten(1)
        products = inner_products(flat, flat)
        return products[self.bottleneck :, self.bottleneck :]  # sliced when small: a slice of the rows costs more

    def similarity(self, block: Block, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """⟨s, ŝ⟩ and ‖ŝ‖² of all pairs of a block, (n, K) each, without forming ŝ (equation 6).

        `gram` spares its computation, where there are many blocks.
        """
        gram = self.gram if gram is None else gram
        return _Similarity.apply(block.project(self.rows), self.bias, gram, self.activation)


class _Similarity(torch.autograd.Function):
    """(⟨D, s⟩, code) -> ⟨s, ŝ⟩ and ‖ŝ‖², with few passes over what has a number for each pair and row."""

    @staticmethod
    def forward(ctx: Any, projections: Tensor, bias: Tensor, gram: Tensor, activation: str) -> tuple[Tensor, Tensor]:
        size = len(bias)
        code = torch.empty_like(projections[size:])  # as Autoencoder.code
        ACTIVATIONS[activation](torch.add(projections[:size], bias[:, None, None], out=code[:size]))
        code[size] = 1
        mixed = (gram @ code.flatten(1)).view_as(code)
        ctx.activation = activation
        ctx.save_for_backward(projections, code, mixed)
        return (projections[size:] * code).sum(0), (mixed * code).sum(0)

    @staticmethod
    def backward(ctx: Any, inner: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        projections, code, mixed = ctx.saved_tensors
        size, gradient = len(code) - 1, torch.empty_like(projections)
        torch.mul(code, inner, out=gradient[size:])
        encoded = torch.mul(projections[size:-1], inner, out=gradient[:size])
        encoded.addcmul_(mixed[:size], square, value=2)
        SLOPES[ctx.activation](encoded, code[:size])
        gram = (code * square).flatten(1) @ code.flatten(1).T
        return gradient, encoded.sum((1, 2)), gram, None


def losses(inner: Tensor, square: Tensor, loss: str) -> Tensor:
    """‖s − ŝ‖² = 1 − 2⟨s, ŝ⟩ + ‖ŝ‖² (`squared`), or 1 − cos(s, ŝ) (`cosine`), per pair."""
    return 1 - 2 * inner + square if loss == "squared" else 1 - cosine(inner, square)


def cosine(inner: Tensor, square: Tensor) -> Tensor:
    """cos(s, ŝ) of unit spectra s; 0 where the reconstruction vanishes."""
    return inner / square.clamp_min(1e-24).sqrt()


def blocks(spectra: Spectra, settings: AutoencoderSettings) -> Iterator[Block]:
    """The blocks that evaluate all pairs of a batch of spectra: one where it factorises, else many in bounded memory."""
    spectra = balanced(in_range(spectra), settings)
    if settings.representation == "complex":
        yield ComplexBlock(spectra)
    elif settings.representation == "power":
        yield PowerBlock(spectra)
    else:
        yield from magnitude_blocks(spectra, settings.representation, settings.workspace_mb * 2**20)


def balanced(spectra: Spectra, settings: AutoencoderSettings) -> Spectra:
    """Both parts at unit RMS, where the settings say so."""
    return balance_parts(spectra) if settings.balance == "unit-rms" else spectra


class KeptBlocks:
    """The blocks of all images, again and again; as many as fit into `workspace_mb` are kept, the others built each time."""

    def __init__(self, spectra: Spectra, settings: AutoencoderSettings) -> None:
        self.spectra, self.settings = spectra, settings
        self.kept: list[Block] = []
        self.images, self.room = 0, settings.workspace_mb * 2**20  # images of the blocks that are kept

    def __iter__(self) -> Iterator[Block]:
        yield from self.kept
        for start in range(self.images, self.spectra.images, self.settings.batch_size):
            made = []
            for block in self._made(start):
                yield block
                self.room -= sum(
                    part.numel() * part.element_size() for part in vars(block).values() if isinstance(part, Tensor)
                )
                if self.room > 0:
                    made.append(block)
            if self.room > 0:
                self.kept += made
                self.images = start + self.settings.batch_size

    def once(self) -> Iterator[Block]:
        """All blocks, where no other pass follows that would need them again: none is kept."""
        for start in range(0, self.spectra.images, self.settings.batch_size):
            yield from self._made(start)

    def _made(self, start: int) -> Iterator[Block]:
        return blocks(self.spectra.batch(slice(start, start + self.settings.batch_size)), self.settings)


def row_shape(input_channels: int, layout: Layout, representation: str) -> tuple[int, int]:
    """Shape of one row of the autoencoder: (C + 1, H·W) for `complex`, (C, H·W) otherwise."""
    return input_channels + (representation == "complex"), layout.size


@torch.no_grad()
def fidelities(network: Autoencoder, spectra: Spectra, settings: AutoencoderSettings) -> Tensor:
    """F_k = mean_n cos(s_nk, ŝ_nk), (K,) float64 on the CPU (equation 9)."""
    total = torch.zeros(spectra.channels, dtype=torch.float64, device="cpu")
    for batch in spectra.to(network.rows.device).batches(settings.batch_size):
        parts = [cosine(*network.similarity(block)).double().cpu() for block in blocks(batch, settings)]
        total += torch.cat([part.reshape(-1) for part in parts]).view(batch.images, batch.channels).sum(0)
    return total / spectra.images


def save_autoencoder(path: str | Path, network: Autoencoder, layer: str = "", representation: str = "complex") -> None:
    """Write the weights, and what they are for, to one safetensors file: activation, layer and representation."""
    purpose = {"activation": network.activation, "layer": layer, "representation": representation}
    save_tensors(path, network.state_dict(), purpose)


def load_autoencoder(path: str | Path, layer: str | None = None, representation: str | None = None) -> Autoencoder:
    """Read what `save_autoencoder` wrote.

    DamagedFile where the file is missing or damaged, holds no autoencoder, or one of another layer or representation.
    """
    wanted = {"layer": layer, "representation": representation}
    with open_tensors(path, digest=True) as file:
        file.check_identity({key: value for key, value in wanted.items() if value is not None})
        bias = file.take("bias", ("d",), PRECISE)
        rows = file.take("rows", (2 * len(bias) + 1, "channels", "frequencies"), PRECISE)
        if (activation := file.metadata.get("activation")) not in ACTIVATIONS or rows.dtype != bias.dtype:
            raise DamagedFile(path, f"is no autoencoder: activation {activation!r}, {rows.dtype} and {bias.dtype}")
    return Autoencoder(rows, bias, activation)
