"""Direct evaluation: the field, its spectrum and its reconstruction, built as published.

The reference: it starts from activations and builds everything. Tests and the benchmark compare the factorised evaluation
with it; the figure of the method draws what it gives. Memory: N·K·C·H·W complex values.
"""

import torch
from torch import Tensor

from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings
from scap.criterion.projections import EPSILON
from scap.criterion.spectra import Layout, half_plane, mirror, resize
from scap.criterion.spectral_magnitudes import magnitudes


def interaction_field(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Z_k = X + iY_k, (N, K, C, H, W) complex: X (N, C, H, W), Y (N, K, H', W') resized and broadcast over c (equation 1)."""
    aligned = resize(outputs, *inputs.shape[-2:])
    x, y = torch.broadcast_tensors(inputs[:, None], aligned[:, :, None])
    return torch.complex(x.contiguous(), y.contiguous())


def spectrum(field: Tensor) -> Tensor:
    """S_k = FFT2(Z_k), orthonormal over the last two dimensions (equation 2)."""
    return torch.fft.fft2(field, norm="ortho")


def represent(spectra: Tensor, representation: str) -> Tensor:
    """r(S), real, over the whole plane: (…, C, H, W) complex -> (…, C, H, W), `complex` -> (…, 2C, H, W) (equation 3)."""
    if representation == "complex":
        return torch.cat([spectra.real, spectra.imag], dim=-3)
    power = spectra.real.square() + spectra.imag.square()
    if representation == "power":
        return power
    return magnitudes(power, representation, dims=(-3, -2, -1))


def normalise(representation: Tensor) -> Tensor:
    """s = r/‖r‖ over the last three dimensions; a field that is zero gives zero."""
    norm = representation.square().sum((-3, -2, -1), keepdim=True).sqrt()
    return representation / norm.clamp_min(EPSILON)


def whole_plane(rows: Tensor, layout: Layout, representation: str) -> Tensor:
    """Rows of an autoencoder (R, channels, H·W) over the whole plane, in the layout of `represent`: (R, C or 2C, H, W).

    An isometry: the half-plane coordinates are an orthonormal basis of the vectors r(S) that a field can give.
    """
    height, width, real, freq = layout.height, layout.width, layout.real, layout.frequencies
    if layout.domain == "space":
        plane = back = torch.arange(layout.size, device="cpu")
    else:
        plane = half_plane(height, width)
        back = mirror(plane, height, width)
    pairs = slice(real, None)

    def scatter(own: Tensor, paired: Tensor, mirrored: Tensor) -> Tensor:
        out = rows.new_zeros(*own.shape[:-1], layout.size)
        out = out.index_copy(-1, plane.to(rows.device), torch.cat([own, paired], dim=-1))
        return out.index_copy(-1, back[pairs].to(rows.device), mirrored).unflatten(-1, (height, width))

    if representation != "complex":
        own, even, odd = rows[..., :real], rows[..., real:freq], rows[..., freq:]
        if representation == "power":
            even, odd = (even + odd) / 2**0.5, (even - odd) / 2**0.5
        return scatter(own, even, odd)
    own, re, im = rows[..., :real], rows[..., real:freq] / 2**0.5, rows[..., freq:] / 2**0.5
    copies = rows.shape[1] - 1
    x = slice(0, copies)
    y = [(part[:, -1:] / copies**0.5).expand(-1, copies, -1) for part in (own, re, im)]
    zero = torch.zeros_like(own[:, x])
    real_part = scatter(own[:, x], re[:, x] - y[2], re[:, x] + y[2])
    imaginary = scatter(y[0] + zero, im[:, x] + y[1], y[1] - im[:, x])
    return torch.cat([real_part, imaginary], dim=1)


def balance_activations(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Unit RMS for X per image and for the aligned Y per image and output channel."""
    outputs = resize(outputs, *inputs.shape[-2:])
    scale = [t.square().mean(d, keepdim=True).sqrt() for t, d in ((inputs, (1, 2, 3)), (outputs, (2, 3)))]
    return inputs / scale[0].clamp_min(EPSILON), outputs / scale[1].clamp_min(EPSILON)


def reconstruct(network: Autoencoder, inputs: Tensor, outputs: Tensor, settings: AutoencoderSettings) -> tuple[Tensor, Tensor]:
    """s and ŝ of all pairs, (N, K, channels, H, W), from X (N, C, H, W) and Y (N, K, H', W'), everything built.

    The autoencoder acts as a dense one over the whole plane: ŝ = D·act(E·s + e) + b.
    """
    if settings.balance == "unit-rms":
        inputs, outputs = balance_activations(inputs, outputs)
    field = interaction_field(inputs, outputs)
    spectra = spectrum(field) if settings.domain == "frequency" else field
    normalised = normalise(represent(spectra, settings.representation))
    layout = Layout(inputs.shape[2], inputs.shape[3], settings.domain)
    rows = whole_plane(network.rows, layout, settings.representation).flatten(1)
    code = network.code(rows[: network.bottleneck] @ normalised.flatten(2).flatten(0, 1).T)
    return normalised, (code.T @ rows[network.bottleneck :]).view_as(normalised)
