"""The three forms of conditional fidelity as least squares problems of one consumer (docs/conditional.md, C1, C5, C6)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scap.criterion.elimination import Problem
from scap.pruning.next_layers.consumers import Consumer, slopes
from scap.pruning.next_layers.moments import Moments
from scap.pruning.next_layers.unfolding import coverage, groups_of, layer_at, taps_of, weight_matrix

TILE = 32  # pixels a side of the largest map that is transformed at once; larger ones are cut into tiles


class Form:
    """Moments of what one consumer reads; several producers that it reads in the same way share them."""

    ridge: ClassVar[float]  # share of each input's own energy that is added to it, by default

    def __init__(self, network: nn.Module, consumer: Consumer, inputs: Tensor) -> None:
        layer = layer_at(network, consumer.name)
        self.layer: Any = layer
        self.name, self.group, self.inputs = consumer.name, consumer.group, inputs[:1]
        scale = slopes(network, consumer.norm, len(layer.weight)).chunk(groups_of(layer))[consumer.group]
        self.weights = scale[:, None] * weight_matrix(layer, consumer.group)  # (O, D)
        self.taps = self._taps(consumer)  # (R, T): columns of each of the R channels that explain each other
        self.moments = Moments()

    def key(self) -> tuple:
        """What tells it from other moments."""
        return (type(self).__name__, self.name, self.group, tuple(self.taps.flatten().tolist()))

    def _taps(self, consumer: Consumer) -> Tensor:
        if isinstance(self.layer, nn.Linear) and consumer.columns.shape[1] > 1:
            return consumer.columns  # flattened maps: the pixels of a channel are its taps
        return torch.arange(self.weights.shape[1], device="cpu").view(-1, taps_of(self.layer))

    def _kernel(self) -> Tensor:
        """(T, O, R): weights of each tap, times the root of the share of positions at which it reads the map."""
        share = torch.ones(1, device="cpu") if self.taps.shape[1] != taps_of(self.layer) else coverage(self.layer, self.inputs)
        return (self.weights[:, self.taps] * share.sqrt().to(self.weights)).permute(2, 0, 1)

    def _blocks(self, consumer: Consumer) -> Tensor:
        """(K', m): which of the R channels are each channel of the producer."""
        row_of = torch.full((self.weights.shape[1],), -1, device="cpu")
        row_of[self.taps] = torch.arange(len(self.taps), device="cpu")[:, None]
        return row_of[consumer.columns][:, :: self.taps.shape[1]]

    def inputs_read(self) -> int:
        """R, the inputs that explain each other."""
        return len(self.taps)

    def size(self) -> int:
        """Bytes of the moments in double precision."""
        return len(self.taps) ** 2 * 8

    def add(self, inputs: Tensor, unfolded: Tensor) -> None:
        """Add one batch: what the layer reads, and the unfolded inputs (n, D) of the group."""
        raise NotImplementedError

    def problem(self, consumer: Consumer, ridge: float) -> Problem:
        """The least squares problem whose blocks are the channels of the consumer's producer."""
        raise NotImplementedError


class Channelwise(Form):
    """C = E[y yᵀ] over all positions and taps that read, M = Σ_t w_t w_tᵀ."""

    ridge = 1e-4

    def add(self, inputs: Tensor, unfolded: Tensor) -> None:
        """Every tap of every position is a sample; those in the padding add zeros only."""
        self.moments.add(unfolded[:, self.taps.to(unfolded.device)].mT.flatten(0, 1))

    def problem(self, consumer: Consumer, ridge: float) -> Problem:
        """Zeros of the padding are taken out of the mean: C counts what is read, `_kernel` how often."""
        kernel = self._kernel()
        share = self.moments.second(self.name) / self._mean_coverage()
        return regularised(share[None], kernel.flatten(0, 1)[None], ridge, consumer.channels, self._blocks(consumer))

    def _mean_coverage(self) -> float:
        whole = self.taps.shape[1] == taps_of(self.layer)
        return float(coverage(self.layer, self.inputs).mean()) if whole else 1.0


class Taps(Form):
    """G = E[u uᵀ] of the unfolded inputs u; a channel is the block of its taps."""

    ridge = 1e-3

    def inputs_read(self) -> int:
        """D."""
        return self.weights.shape[1]

    def size(self) -> int:
        """Bytes of G."""
        return self.weights.shape[1] ** 2 * 8

    def key(self) -> tuple:
        """All producers share it."""
        return (type(self).__name__, self.name, self.group)

    def add(self, inputs: Tensor, unfolded: Tensor) -> None:
        """Positions are the samples."""
        self.moments.add(unfolded)

    def problem(self, consumer: Consumer, ridge: float) -> Problem:
        """Blocks of T columns."""
        moments = self.moments.second(self.name)
        return regularised(moments[None], self.weights[None], ridge, consumer.channels, consumer.columns)


class Spectral(Form):
    """C_f = E[ŷ_f ŷ_fᴴ] and the consumer's transfer function at each frequency f of the half plane."""

    ridge = 1e-3

    def size(self) -> int:
        """Bytes of the cross-spectra."""
        height, width = self._grid()
        return len(self.taps) ** 2 * height * (width // 2 + 1) * 16

    def _reads_all(self) -> bool:
        return self.layer.kernel_size != (1, 1)

    def _tile(self) -> tuple[int, int]:
        sizes = self.inputs.shape[2:]
        if not self._reads_all():
            sizes = torch.Size(-(-size // stride) for size, stride in zip(sizes, self.layer.stride, strict=True))
        return min(sizes[0], TILE), min(sizes[1], TILE)

    def _grid(self) -> tuple[int, int]:
        """Zeros around the map, as many as the kernel reaches, keep its two sides apart."""
        reach = [d * (k - 1) for d, k in zip(self.layer.dilation, self.layer.kernel_size, strict=True)]
        return self._tile()[0] + reach[0], self._tile()[1] + reach[1]

    def add(self, inputs: Tensor, unfolded: Tensor) -> None:
        """Images (and tiles of large maps) are the samples, (F, n, R)."""
        maps = inputs.chunk(groups_of(self.layer), 1)[self.group]
        if not self._reads_all():
            maps = maps[:, :, :: self.layer.stride[0], :: self.layer.stride[1]]
        height, width = self._tile()
        tiles = maps.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        tiles = tiles if tiles.dtype == torch.float64 else tiles.float()
        spectra = torch.fft.rfft2(tiles, s=self._grid(), norm="ortho").flatten(2)
        self.moments.add(spectra.permute(2, 0, 1))

    def problem(self, consumer: Consumer, ridge: float) -> Problem:
        """Half-plane weights, and the division by the map's pixels, are put into the transfer function."""
        height, width = self._grid()
        kernel = self._kernel().permute(1, 2, 0).unflatten(2, self.layer.kernel_size)  # (O, R, h, w)
        spread = kernel.new_zeros(*kernel.shape[:2], height, width)
        rows, columns = (slice(None, None, dilation) for dilation in self.layer.dilation)
        reach = [d * (k - 1) + 1 for d, k in zip(self.layer.dilation, self.layer.kernel_size, strict=True)]
        spread[..., : reach[0], : reach[1]][..., rows, columns] = kernel
        column = torch.arange(width // 2 + 1, dtype=torch.float64, device="cpu")
        twice = torch.where((column == 0) | (2 * column == width), 1.0, 2.0)  # the other half plane is the same
        pixels = self._tile()[0] * self._tile()[1]
        transfer = torch.fft.rfft2(spread).conj() * (twice.to(spread) / pixels).sqrt()
        transfer = transfer.flatten(2).permute(2, 0, 1)
        moments = self.moments.second(self.name)
        return regularised(moments, transfer, ridge, consumer.channels, self._blocks(consumer))


def form_of(name: str, network: nn.Module, consumer: Consumer, inputs: Tensor) -> Form:
    """The form by name; a linear layer has no frequencies and is taken channelwise in their place."""
    linear = isinstance(network.get_submodule(consumer.name), nn.Linear)
    kind = Channelwise if name == "spectral" and linear else FORMS[name]
    return kind(network, consumer, inputs)


def regularised(moments: Tensor, weights: Tensor, ridge: float, channels: Tensor, blocks: Tensor) -> Problem:
    """The problem with `ridge` times its own energy added to each input, in place; inputs that are always zero cost nothing."""
    energy = moments.diagonal(dim1=-2, dim2=-1).real
    silent = energy <= 0
    added = torch.where(silent, torch.ones_like(energy), ridge * energy)
    weights = weights.to(moments.dtype) * ~silent[:, None]
    moments.diagonal(dim1=-2, dim2=-1).add_(added)
    return Problem(moments, weights, channels, blocks)


FORMS: dict[str, type[Form]] = {"channelwise": Channelwise, "spectral": Spectral, "taps": Taps}
