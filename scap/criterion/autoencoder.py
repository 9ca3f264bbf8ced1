"""One low-capacity autoencoder per layer, shared by all its channels (docs/method.md, equations 6 and 9)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from scap.criterion.projections import ComplexBlock, PowerBlock, balance_parts
from scap.criterion.settings import AutoencoderSettings
from scap.criterion.spectra import Layout, Spectra
from scap.criterion.spectral_magnitudes import magnitude_blocks
from scap.errors import DamagedFile
from scap.reading import PRECISE, open_tensors
from scap.tensors import save_tensors

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda h: h}


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

    def similarity(self, block: Block) -> tuple[Tensor, Tensor]:
        """⟨s, ŝ⟩ and ‖ŝ‖² of all pairs of a block, (n, K) each, without forming ŝ (equation 6)."""
        encoded, decoded = block.project(self.rows).split([self.bottleneck, self.bottleneck + 1])
        code = self.code(encoded)
        flat = self.rows.flatten(1)
        gram = (flat @ flat.T)[self.bottleneck :, self.bottleneck :]  # sliced when small: a slice of the rows costs more
        return (decoded * code).sum(0), (torch.tensordot(gram, code, 1) * code).sum(0)


def losses(inner: Tensor, square: Tensor, loss: str) -> Tensor:
    """‖s − ŝ‖² = 1 − 2⟨s, ŝ⟩ + ‖ŝ‖² (`squared`), or 1 − cos(s, ŝ) (`cosine`), per pair."""
    return 1 - 2 * inner + square if loss == "squared" else 1 - cosine(inner, square)


def cosine(inner: Tensor, square: Tensor) -> Tensor:
    """cos(s, ŝ) of unit spectra s; 0 where the reconstruction vanishes."""
    return inner / square.clamp_min(1e-24).sqrt()


def blocks(spectra: Spectra, settings: AutoencoderSettings) -> Iterator[Block]:
    """The blocks that evaluate all pairs of a batch of spectra: one where it factorises, else many in bounded memory."""
    if settings.balance == "unit-rms":
        spectra = balance_parts(spectra)
    if settings.representation == "complex":
        yield ComplexBlock(spectra)
    elif settings.representation == "power":
        yield PowerBlock(spectra)
    else:
        yield from magnitude_blocks(spectra, settings.representation, settings.workspace_mb * 2**20)


def row_shape(input_channels: int, layout: Layout, representation: str) -> tuple[int, int]:
    """Shape of one row of the autoencoder: (C + 1, H·W) for `complex`, (C, H·W) otherwise."""
    return input_channels + (representation == "complex"), layout.size


@torch.no_grad()
def fidelities(network: Autoencoder, spectra: Spectra, settings: AutoencoderSettings) -> Tensor:
    """F_k = mean_n cos(s_nk, ŝ_nk), (K,) float64 on the CPU (equation 9)."""
    total = torch.zeros(spectra.channels, dtype=torch.float64)
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
