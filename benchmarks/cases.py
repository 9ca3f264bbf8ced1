"""Layers to measure: their shapes, synthetic activations, and one training step evaluated directly and factorised."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import seconds
from scap.criterion import reference as direct
from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, blocks, cosine, losses
from scap.criterion.fitting import fit_autoencoder, random_autoencoder
from scap.criterion.spectra import Spectra, open_spectra, spectra_of
from scap.models.names import VGG16_BLOCKS
from scap.tensors import TensorFile

Result = tuple[Tensor, Tensor, Tensor]  # cosines (n, K), mean loss, gradient of the autoencoder's rows


@dataclass(frozen=True)
class Case:
    """A convolution: `inputs` (C) and `outputs` (K) channels, `side` of its square maps."""

    layer: str
    inputs: int
    outputs: int
    side: int

    def field(self, images: int = 1) -> int:
        """Bytes of the interaction field of some images, complex64."""
        return 8 * images * self.inputs * self.outputs * self.side**2


def vgg16_cases(*, every: bool = False) -> list[Case]:
    """The convolutions of VGG16 on 32x32 images; those of one shape together, unless `every`."""
    cases: list[Case] = []
    channels, side = 3, 32
    for block, widths in enumerate(VGG16_BLOCKS, 1):
        for position, width in enumerate(widths, 1):
            cases.append(Case(f"conv{block}_{position}", channels, width, side))
            channels = width
        side //= 2
    if every:
        return cases
    shapes: dict[Case, list[str]] = {}
    for case in cases:
        shapes.setdefault(replace(case, layer=""), []).append(case.layer)
    return [replace(shape, layer=", ".join(layers)) for shape, layers in shapes.items()]


RESNET_CASES = [Case("ResNet-50, stage 3", 1024, 1024, 14), Case("ResNet-50, stage 4", 2048, 2048, 7)]


def activations(case: Case, images: int, outputs: int | None = None) -> tuple[Tensor, Tensor]:
    """X and Y (the first `outputs` channels) with the sparsity and the skewed loudness of channels after ReLU."""
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> Tensor:
        loudness = torch.rand(channels, 1, 1, generator=generator) + 0.1
        return torch.randn(images, channels, case.side, case.side, generator=generator).relu_().mul_(loudness)

    return maps(case.inputs), maps(outputs or case.outputs)


def write_synthetic_spectra(path: Path, case: Case, images: int) -> None:
    """A spectra file as the workflow caches it, float16, of random spectra."""
    shapes = {"inputs": (images, case.inputs, case.side**2), "outputs": (images, case.outputs, case.side**2)}
    generator = torch.Generator().manual_seed(0)
    metadata = {"layer": "", "height": str(case.side), "width": str(case.side)}
    with TensorFile(path, shapes, torch.float16, metadata=metadata) as file:
        for _ in range(images):
            for name, shape in shapes.items():
                file.append(name, torch.randn(1, *shape[1:], generator=generator))


def open_synthetic_spectra(path: Path) -> Spectra:
    """What write_synthetic_spectra wrote, memory-mapped."""
    return open_spectra(path, "")


def trained_a_little(inputs: Tensor, outputs: Tensor, settings: AutoencoderSettings) -> Autoencoder:
    """An autoencoder as training meets it: started from the principal subspace, two epochs old."""
    return fit_autoencoder(spectra_of(inputs, outputs), replace(settings, epochs=2))


def untrained(case: Case, settings: AutoencoderSettings) -> Autoencoder:
    """A random autoencoder of the right shape."""
    return random_autoencoder(spectra_of(*activations(case, 1)), settings, settings.bottleneck, case.layer)


def direct_step(network: Autoencoder, inputs: Tensor, outputs: Tensor, settings: AutoencoderSettings) -> Result:
    """Forward and backward with everything built: field, FFT, unit spectra, reconstructions."""
    s, reconstructed = (part.flatten(2) for part in direct.reconstruct(network, inputs, outputs, settings))
    loss = (s - reconstructed).square().sum(-1).mean()
    network.zero_grad()
    loss.backward()
    with torch.no_grad():
        cosines = cosine((s * reconstructed).sum(-1), reconstructed.square().sum(-1))  # sums in pairs, as no norm is
    assert network.rows.grad is not None
    return cosines, loss.detach(), network.rows.grad


def cached_step(network: Autoencoder, spectra: Spectra, settings: AutoencoderSettings) -> Result:
    """Forward and backward, factorised, from spectra."""
    (block,) = blocks(spectra, settings)
    inner, square = network.similarity(block)
    loss = losses(inner, square, settings.loss).mean()
    network.zero_grad()
    loss.backward()
    assert network.rows.grad is not None
    return cosine(inner, square).detach(), loss.detach(), network.rows.grad


def factorised_step(network: Autoencoder, inputs: Tensor, outputs: Tensor, settings: AutoencoderSettings) -> Result:
    """Forward and backward, factorised, from the same activations as the direct step."""
    return cached_step(network, spectra_of(inputs, outputs), settings)


def prepare_step(kind: str, case: Case, images: int, outputs: int, settings: AutoencoderSettings) -> Callable[[], Result]:
    """One step on synthetic activations, ready to run (a tiny one ran before: what libraries load is no cost of the step)."""
    step = {"direct": direct_step, "factorised": factorised_step}[kind]
    tiny = Case("tiny", 2, 2, 2)
    step(untrained(tiny, settings), *activations(tiny, 1), settings)
    inputs, maps = activations(case, images, outputs)
    network = untrained(case, settings)
    return lambda: step(network, inputs, maps, settings)


def part_that_fits(case: Case, images: int, limit: int) -> tuple[int, int]:
    """Images and output channels of the largest part of the batch whose field stays below `limit` bytes; it can be halved."""
    fitting = limit // case.field()
    if fitting >= images:
        return images, case.outputs
    if fitting >= 2:
        return fitting // 2 * 2, case.outputs
    return 1, max(2, min(case.outputs, limit * case.outputs // case.field()) // 2 * 2)


def half_of(images: int, outputs: int) -> tuple[int, int]:
    """Half of a part of a batch."""
    return (images // 2, outputs) if images > 1 else (1, outputs // 2)


def to_whole(part: float, half: float, share: float) -> float:
    """A quantity linear in the number of pairs, from a part (`share` of all the pairs) and the half of this part."""
    return part + 2 * max(part - half, 0.0) * (1 / share - 1)


def direct_seconds_per_pair(case: Case, settings: AutoencoderSettings, limit: int) -> float:
    """Direct forward and backward of one batch, seconds per pair, from a part of it and the half of this part."""
    part = part_that_fits(case, settings.batch_size, limit)
    sizes = {"part": part, "half": half_of(*part)}
    times = seconds({name: prepare_step("direct", case, *size, settings) for name, size in sizes.items()}, repeats=3)
    pairs = settings.batch_size * case.outputs
    return to_whole(times["part"], times["half"], part[0] * part[1] / pairs) / pairs


def largest_difference(result: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return ((result - expected).abs().max() / expected.abs().max()).item()


def settings_of(options: argparse.Namespace, representation: str = "complex", kind: str = "nonlinear") -> AutoencoderSettings:
    """The default autoencoder (tanh, bottleneck 8, squared error) in one representation."""
    settings = AutoencoderSettings(representation=representation, kind=kind)
    return replace(settings, epochs=5) if options.quick else settings
