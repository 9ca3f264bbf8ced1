"""The whole criterion in one call, for networks outside the workflow."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scap.criterion.activations import check_layers, record_activations
from scap.criterion.autoencoder import AutoencoderSettings, fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.fusion import CriterionSettings, Values, channel_scores, filter_norms, score_table
from scap.criterion.spectra import open_activations, open_spectra, write_spectra
from scap.criterion.strengths import STRENGTHS, second_moments
from scap.errors import ScapError
from scap.models.layers import conv_layers
from scap.pruning.surgery import prunable_layers

if TYPE_CHECKING:
    import pandas as pd


def score_network(
    network: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    criterion: CriterionSettings | None = None,
    autoencoder: AutoencoderSettings | None = None,
    outputs: str = "activated",
    dtype: torch.dtype = torch.float16,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> "pd.DataFrame":
    """The score table of a network: one row a channel, `layer`, `channel`, `fidelity`, `magnitude`, `score`.

    `images` (N, channels, H, W): calibration images, normalised as in training, on the network's device. `layers`: module
    paths of convolutions, all that can be pruned by default. `outputs`: where Y is read (scap.criterion.activations). The
    activations of all layers and the spectra of one at a time go through a temporary folder, in `dtype`. Raises ScapError
    for images that are no finite floats, for a layer that does not exist or cannot be recorded, and for weights,
    magnitudes or fidelities that are not finite.
    """
    criterion, autoencoder = criterion or CriterionSettings(), autoencoder or AutoencoderSettings()
    check_images(images)
    names = list(layers) if layers is not None else prunable_layers(network, images[:1])
    check_layers(network, names)
    convolutions = conv_layers(network)
    magnitudes = {layer: filter_norms(convolutions[layer].weight.detach().cpu().double().numpy()) for layer in names}
    faithful: dict[str, Values] = {}
    if criterion.method == "scap":
        with tempfile.TemporaryDirectory(prefix="scap-") as folder:
            activations = Path(folder) / "activations.safetensors"
            record_activations(network, images, names, activations, outputs=outputs, dtype=dtype, report=report)
            for layer in names:
                faithful[layer] = _fidelity(activations, layer, autoencoder, dtype, str(images.device), report)
                if measure := STRENGTHS.get(criterion.magnitude_of):
                    magnitudes[layer] = measure(second_moments(open_activations(activations, layer)[1])).numpy()
    return score_table({layer: channel_scores(layer, faithful.get(layer), magnitudes[layer], criterion) for layer in names})


def check_images(images: Tensor) -> None:
    """ScapError where `images` are not finite floats (N, channels, H, W)."""
    if not isinstance(images, Tensor):
        raise ScapError(f"images is a {type(images).__name__}; give a tensor (N, channels, H, W), as torch.as_tensor makes it")
    if images.ndim != 4 or not images.numel() or not images.is_floating_point():
        raise ScapError(f"images: {tuple(images.shape)} of {images.dtype}; give normalised floats (N, channels, H, W)")
    if not images.isfinite().all():
        raise ScapError("images: they hold NaN or infinity; normalise them as in training")


def _fidelity(
    activations: Path,
    layer: str,
    settings: AutoencoderSettings,
    dtype: torch.dtype,
    device: str,
    report: Callable[[Mapping[str, float]], None] | None,
) -> Values:
    path = activations
    if settings.domain == "frequency":
        path = activations.with_name("spectra.safetensors")
        write_spectra(activations, layer, path, dtype=dtype)
    spectra = open_spectra(path, layer, settings.domain)
    fitted = fit_autoencoder(spectra, settings, layer=layer, device=device, report=report)
    return fidelities(fitted, spectra, settings).numpy()
