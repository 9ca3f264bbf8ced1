"""Fitting one layer's autoencoder: trained until its loss has settled, or linear in closed form (equation 8)."""

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, blocks, losses, row_shape
from scap.criterion.span import span_of, worthwhile
from scap.criterion.spectra import Spectra
from scap.errors import ScapError

Report = Callable[[dict[str, float]], None]


def fit_autoencoder(
    spectra: Spectra,
    settings: AutoencoderSettings,
    *,
    layer: str = "",
    device: str = "cpu",
    report: Report | None = None,
) -> Autoencoder:
    """Train, or for `kind: linear` compute, the autoencoder of one layer.

    `layer` enters the seed, so that the order of layers does not matter. On a GPU the layer's spectra are moved there once
    and an epoch runs without waiting for the host. Raises ScapError where the loss is not finite.
    """
    spectra = spectra.to(device)
    in_span = settings.kind == "linear" or settings.start == "principal"  # a random start has parts outside of it
    if settings.representation != "complex" or not in_span or not worthwhile(spectra):
        return _fit(spectra, settings, layer, report)
    span = span_of(spectra)
    fitted = _fit(span.spectra, settings, layer, report)
    return Autoencoder(span.expand(fitted.rows.detach()), fitted.bias.detach(), fitted.activation)


def _fit(spectra: Spectra, settings: AutoencoderSettings, layer: str, report: Report | None) -> Autoencoder:
    if settings.kind == "nonlinear" and settings.start == "random" and not settings.explained:
        network = random_autoencoder(spectra, settings, settings.bottleneck, layer)
    else:
        basis, share = principal_subspace(spectra, settings, report=report)
        basis = basis[: _explaining(share, settings)]
        if settings.kind == "linear":
            return linear_autoencoder(basis)
        if settings.start == "random":
            network = random_autoencoder(spectra, settings, len(basis), layer)
        else:
            network = principal_autoencoder(basis, settings)
    return train_autoencoder(network.to(spectra.inputs.device), spectra, settings, layer=layer, report=report)


def random_autoencoder(spectra: Spectra, settings: AutoencoderSettings, bottleneck: int, layer: str) -> Autoencoder:
    """Random weights by (seed, layer): E and D with unit-variance projections of unit spectra, biases zero."""
    shape = row_shape(spectra.inputs.shape[1], spectra.layout, settings.representation)
    generator = _generator(settings, layer, "weights")
    rows = torch.randn(2 * bottleneck + 1, *shape, generator=generator, dtype=spectra.precision)
    rows[bottleneck:] /= math.sqrt(bottleneck * math.prod(shape))
    rows[-1] = 0
    return Autoencoder(rows, rows.new_zeros(bottleneck), settings.activation)


def principal_autoencoder(basis: Tensor, settings: AutoencoderSettings) -> Autoencoder:
    """A nonlinear autoencoder that starts where the best linear one ends.

    tanh: it is nearly linear for codes halved. ReLU passes one sign of a code, so a direction needs two units, one for each
    sign: the start spans the half of the directions that hold the most energy.
    """
    size = len(basis)
    if settings.activation == "relu":
        signed = torch.cat([basis[: (size + 1) // 2], -basis[: size // 2]])
        encoder, decoder = signed, signed
    else:
        encoder, decoder = basis / 2, basis * 2
    rows = torch.cat([encoder, decoder, torch.zeros_like(basis[:1])])
    return Autoencoder(rows, rows.new_zeros(size), settings.activation)


def _generator(settings: AutoencoderSettings, layer: str, purpose: str) -> torch.Generator:
    # A hash, as torch seeds its CPU generator with the low 32 bits only.
    return torch.Generator().manual_seed(zlib.crc32(f"{settings.seed}/{layer}/{purpose}".encode()))


class Plateau:
    """Counts how often a loss has settled: for `patience` epochs, no minimum lower by the share `tolerance`."""

    def __init__(self, tolerance: float, patience: int = 3) -> None:
        self.tolerance, self.patience = tolerance, patience
        self.best, self.waited, self.count = math.inf, 0, 0

    def reached(self, loss: float) -> bool:
        """True in the epoch in which the loss has settled (again)."""
        improved = loss < self.best * (1 - self.tolerance)
        self.best, self.waited = min(self.best, loss), 0 if improved else self.waited + 1
        if self.waited < self.patience:
            return False
        self.waited, self.count = 0, self.count + 1
        return True


def train_autoencoder(
    network: Autoencoder,
    spectra: Spectra,
    settings: AutoencoderSettings,
    *,
    layer: str = "",
    report: Report | None = None,
) -> Autoencoder:
    """Minimise the mean loss over all pairs by Adam, images in random batches, until it has settled.

    When an epoch's loss has not fallen by the share `tolerance` for three epochs, the learning rate is divided by four;
    the third time, training ends. `epochs` is an upper limit.
    """
    device = network.rows.device
    # Adam moves every weight alike: divided by √D, a step moves a projection of a unit spectrum by about learning_rate.
    scale = 1 / math.sqrt(network.rows[0].numel())
    groups = [
        {"params": [network.rows], "lr": settings.learning_rate * scale},
        {"params": [network.bias], "lr": settings.learning_rate},
    ]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    generator = _generator(settings, layer, "batches")
    plateau = Plateau(settings.tolerance)
    for epoch in range(settings.epochs):
        order = torch.randperm(spectra.images, generator=generator).to(spectra.inputs.device)
        total = torch.zeros((), device=device)
        for images in order.split(settings.batch_size):
            total += _step(network, optimiser, spectra.batch(images.sort().values), settings)
        mean = total.item() / (spectra.images * spectra.channels)
        if not math.isfinite(mean):
            raise ScapError(f"layer {layer}: the autoencoder's loss is {mean} in epoch {epoch}; lower its learning_rate")
        if report:
            report({"epoch": epoch + 1, "loss": mean})
        if plateau.reached(mean):
            if plateau.count == 3:
                break
            for group in optimiser.param_groups:
                group["lr"] /= 4
    return network


def _step(network: Autoencoder, optimiser: torch.optim.Optimizer, batch: Spectra, settings: AutoencoderSettings) -> Tensor:
    optimiser.zero_grad()
    total = torch.zeros((), device=network.rows.device)
    for block in blocks(batch, settings):
        loss = losses(*network.similarity(block), settings.loss).sum()
        (loss / (batch.images * batch.channels)).backward()
        total += loss.detach()
    optimiser.step()
    return total


def principal_subspace(
    spectra: Spectra,
    settings: AutoencoderSettings,
    *,
    iterations: int = 60,
    tolerance: float = 1e-6,
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    """The principal subspace of the normalised spectra: basis (d, channels, H·W) and the energy share of each vector (d,).

    Block power iteration with Rayleigh-Ritz (equation 8): V ← orth(Σ s sᵀ V). The product is the gradient of ½ Σ ‖V s‖², so
    it needs nothing but the projections. The start is fixed and does not matter at convergence: there is no seed.
    """
    shape = row_shape(spectra.inputs.shape[1], spectra.layout, settings.representation)
    size = min(math.prod(shape), 2 * settings.bottleneck + 8)
    generator = torch.Generator().manual_seed(0)
    basis = _orthonormal(
        torch.randn(size, math.prod(shape), generator=generator, dtype=spectra.precision).to(spectra.inputs.device)
    )
    previous = basis.new_zeros(size)
    for iteration in range(iterations):
        moved = _second_moment(basis.unflatten(1, shape), spectra, settings).flatten(1)
        values, vectors = torch.linalg.eigh(basis @ moved.T)
        values, vectors = values.flip(0), vectors.flip(1)
        basis, moved = vectors.T @ basis, vectors.T @ moved
        change = (values - previous)[: settings.bottleneck].abs().max() / values[0]
        if report:
            report({"iteration": iteration + 1, "change": change.item()})
        if not change >= tolerance or iteration + 1 == iterations:
            break
        basis, previous = _orthonormal(moved), values
    keep = settings.bottleneck
    share = values.clamp_min(0) / (spectra.images * spectra.channels)
    return basis[:keep].unflatten(1, shape), share[:keep]


def _second_moment(basis: Tensor, spectra: Spectra, settings: AutoencoderSettings) -> Tensor:
    basis = basis.detach().requires_grad_()
    for batch in spectra.batches(settings.batch_size):
        for block in blocks(batch, settings):
            (0.5 * block.project(basis).square().sum()).backward()
    assert basis.grad is not None
    return basis.grad


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T).Q.T.contiguous()


def _explaining(share: Tensor, settings: AutoencoderSettings) -> int:
    """The smallest bottleneck whose principal subspace explains `explained` of the energy, at most `bottleneck`."""
    if not settings.explained:
        return settings.bottleneck
    missing = share.cumsum(0) < settings.explained
    return min(int(missing.sum()) + 1, settings.bottleneck)


def linear_autoencoder(basis: Tensor) -> Autoencoder:
    """ŝ = Vᵀ V s with an orthonormal basis V (d, channels, H·W)."""
    rows = torch.cat([basis, basis, torch.zeros_like(basis[:1])])
    return Autoencoder(rows, basis.new_zeros(len(basis)), "identity")
