"""Fitting one layer's autoencoder: trained until its loss has settled, or linear in closed form (equation 8)."""

import contextlib
import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, KeptBlocks, losses, row_shape
from scap.criterion.projections import ComplexBlock
from scap.criterion.span import span_of, worthwhile
from scap.criterion.spectra import Spectra
from scap.errors import ScapError

Report = Callable[[dict[str, float]], None]
SMALL = 4096  # coordinates of the spectra up to which their second moments are held as a matrix
ROUND = 10  # steps between which the loss is asked whether it has settled


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
    kept = KeptBlocks(spectra, settings)
    if settings.kind == "nonlinear" and settings.start == "random" and not settings.explained:
        network = random_autoencoder(spectra, settings, settings.bottleneck, layer)
    else:
        basis, share = principal_subspace(kept, report=report)
        basis = basis[: _explaining(share, settings)]
        if settings.kind == "linear":
            return linear_autoencoder(basis)
        if settings.start == "random":
            network = random_autoencoder(spectra, settings, len(basis), layer)
        else:
            network = principal_autoencoder(basis, settings)
    return train_autoencoder(network.to(spectra.inputs.device), kept, layer=layer, report=report)


def random_autoencoder(spectra: Spectra, settings: AutoencoderSettings, bottleneck: int, layer: str) -> Autoencoder:
    """Random weights by (seed, layer): E and D with unit-variance projections of unit spectra, biases zero."""
    shape = row_shape(spectra.inputs.shape[1], spectra.layout, settings.representation)
    generator = _generator(settings, layer, "weights")
    rows = torch.randn(2 * bottleneck + 1, *shape, generator=generator, dtype=spectra.precision, device="cpu")
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


def train_autoencoder(network: Autoencoder, kept: KeptBlocks, *, layer: str = "", report: Report | None = None) -> Autoencoder:
    """Minimise the mean loss over all pairs by L-BFGS, all images at once, until it has settled.

    It has when ten steps have not lowered it by the share `tolerance`. Each evaluation of loss and gradient is a pass over
    all images, a step takes about one, and after `epochs` of them no further step is taken.
    """
    objective, settings = Objective(network, kept, layer, report), kept.settings
    optimiser = torch.optim.LBFGS(
        objective.variables,
        max_iter=ROUND,
        history_size=ROUND,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    while objective.passes < settings.epochs:
        before = objective()
        optimiser.param_groups[0]["max_eval"] = settings.epochs - objective.passes + 1
        optimiser.step(objective)
        if objective() >= before * (1 - settings.tolerance):  # also where nothing moves any more, at a tolerance of 0
            break
    return network


class Objective:
    """The mean loss over all pairs, and its gradient by `variables`; a pass over all images unless nothing has changed.

    The variables are the autoencoder's rows, those of encoder and decoder scaled to the same norm, and its bias.
    """

    def __init__(
        self,
        network: Autoencoder,
        kept: KeptBlocks,
        layer: str = "",
        report: Report | None = None,
    ) -> None:
        self.network, self.blocks, self.layer, self.report = network, kept, layer, report
        self.pairs = kept.spectra.images * kept.spectra.channels
        self.passes, self.loss = 0, math.inf
        rows = network.rows.detach()
        self.scale = torch.ones_like(rows[:, :1, :1])
        ratio = (network.decoder.detach().norm() / network.encoder.detach().norm()).sqrt()
        self.scale[: network.bottleneck], self.scale[network.bottleneck :] = ratio, 1 / ratio
        self.variables = [(rows * self.scale).requires_grad_(), network.bias]
        self.known: list[Tensor] = []

    def __call__(self) -> float:
        now = [variable.detach() for variable in self.variables]
        if not self.known or not all(map(torch.equal, now, self.known)):
            self.known = [variable.clone() for variable in now]
            self.network.rows.data = now[0] / self.scale
            self.loss = self.evaluate().item()
            assert self.network.rows.grad is not None
            self.variables[0].grad = self.network.rows.grad / self.scale
            self.passes += 1
            if not math.isfinite(self.loss):
                raise ScapError(f"layer {self.layer}: the autoencoder's loss is {self.loss} in pass {self.passes}")
            if self.report:
                self.report({"epoch": self.passes, "loss": self.loss})
        return self.loss

    def evaluate(self) -> Tensor:
        """The loss, in float64; the gradient is left in the network's parameters."""
        network = self.network
        network.zero_grad()
        gram = network.gram
        leaf = gram.detach().requires_grad_()  # its part of the gradient is taken back to the rows once, not for each block
        total = torch.zeros((), device=leaf.device, dtype=torch.float64)
        for block in self.blocks:
            loss = losses(*network.similarity(block, leaf), self.blocks.settings.loss).sum(dtype=torch.float64) / self.pairs
            loss.backward()
            total += loss.detach()
        gram.backward(leaf.grad)
        return total


def principal_subspace(
    kept: KeptBlocks,
    *,
    iterations: int = 60,
    tolerance: float = 1e-6,
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    """The principal subspace of the normalised spectra: basis (d, channels, H·W) and the energy share of each vector (d,).

    Block power iteration with Rayleigh-Ritz (equation 8): V ← orth(Σ s sᵀ V). The start is fixed and does not matter at
    convergence: there is no seed.
    """
    spectra, settings = kept.spectra, kept.settings
    shape = row_shape(spectra.inputs.shape[1], spectra.layout, settings.representation)
    product = _second_moment(kept, shape)
    size = min(math.prod(shape), 2 * settings.bottleneck + 8)
    generator = torch.Generator().manual_seed(0)
    basis = _orthonormal(
        torch.randn(size, math.prod(shape), generator=generator, dtype=spectra.precision, device="cpu").to(
            spectra.inputs.device
        )
    )
    previous = basis.new_zeros(size)
    for iteration in range(iterations):
        moved = product(basis)
        values, vectors = _eigenvectors(basis @ moved.T)
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


def _second_moment(kept: KeptBlocks, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """V ↦ V·Σ s sᵀ: from the matrix where it is small, else by a pass over all images each time.

    The product is the gradient of ½ Σ ‖V s‖², so a pass needs nothing but the projections.
    """
    if kept.settings.representation == "complex" and math.prod(shape) <= SMALL:
        passed = kept if kept.settings.kind == "nonlinear" else kept.once()
        total = kept.spectra.inputs.new_zeros(math.prod(shape), math.prod(shape), dtype=torch.float64)
        for block in passed:
            assert isinstance(block, ComplexBlock)
            block.add_second_moment(total)
        matrix = total.to(kept.spectra.precision)
        return lambda basis: basis @ matrix

    def product(basis: Tensor) -> Tensor:
        rows = basis.detach().unflatten(1, shape).requires_grad_()
        for block in kept:
            (0.5 * block.project(rows).square().sum()).backward()
        assert rows.grad is not None
        return rows.grad.flatten(1)

    return product


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As torch.linalg.eigh; in float64 where LAPACK fails in float32, as it may where entries are almost zero."""
    with contextlib.suppress(torch.linalg.LinAlgError):
        values, vectors = torch.linalg.eigh(matrix)
        if values.isfinite().all():
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype)


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
