"""The whole criterion in one call."""

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scap.criterion.activations import check_layers, checked_images, part, record_activations
from scap.criterion.autoencoder import fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.fusion import evaluate_term, fuse
from scap.criterion.groups import fuse_groups
from scap.criterion.settings import AutoencoderSettings, CriterionSettings, checked_settings
from scap.criterion.spectra import open_activations, open_spectra, write_spectra
from scap.criterion.terms import Values, needs
from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, first_tensor, fitted, gathered, run
from scap.models.layers import weighted_layers
from scap.pruning.consumers import find_consumers
from scap.pruning.copies import check_network, copied, undisturbed
from scap.pruning.surgery import coupled_groups, some_prunable_layers

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[Mapping[str, float]], None]


def score_network(
    network: nn.Module,
    images: Example,
    *,
    layers: Sequence[str] | None = None,
    coupled: bool = False,
    criterion: CriterionSettings | None = None,
    autoencoder: AutoencoderSettings | None = None,
    outputs: str = "activated",
    dtype: torch.dtype = torch.float16,
    report: Report | None = None,
) -> "pd.DataFrame":
    """How much each output channel matters (docs/method.md). Only what the criterion's terms need is computed.

    Args:
        network: Any module; it is not altered.
        images: Calibration images (N, channels, H, W), normalised as in training, on the network's device. No labels. A
            tuple or dict of tensors for networks of several arguments; a DataLoader is read once, whole.
        layers: Module paths of convolutions; by default all that can be pruned. Those of them that a term cannot score (only
            training runs them, or they run twice, or no reader tells what they are worth) are then left out, with a warning.
        coupled: Score groups of layers that must lose their channels together, `layers` being those that they are named by
            (`prunable_layers(..., coupled=True)`): terms are fused over the layers of a group as `criterion.together` says;
            the conditional terms sum the costs of all layers that read it.
        criterion: Terms of the score and how they are fused; by default fidelity and the L1 norm.
        autoencoder: The autoencoder of the term `fidelity`.
        outputs: Where Y is read: `activated`, after batch norm and activation, or `convolution`.
        dtype: Precision of the temporary files that hold activations and spectra.
        report: Receives the progress of each step as a mapping of names to numbers.

    Returns:
        The score table, one row a channel: `layer`, `channel`, a column for each term, and `score` (high: keep).

    Raises:
        ScapError: For settings of another class, images that are no finite floats, a layer that does not exist or cannot be
            recorded, and for values that are not finite.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> criterion = scap.CriterionSettings(terms={"l1": 1})
        >>> table = scap.score_network(network, torch.rand(64, 3, 8, 8), criterion=criterion)
        >>> list(table.columns), len(table)
        (['layer', 'channel', 'l1', 'score'], 8)
    """
    check_network(network)
    criterion, autoencoder = checked_settings(criterion, autoencoder)
    needed = frozenset().union(*(needs(term) for term in criterion.terms))
    if coupled or layers is None or needed & {"outputs", "autoencoder", "images"}:  # else weights tell all
        images = checked_images(gathered(images))
    groups = coupled_groups(network, part(images, 0, 1), layers) if coupled else None
    names = _names(network, images, layers) if groups is None else list(groups)
    if layers is None:
        names = _scored(network, images, groups or {name: [name] for name in names}, needed, coupled)
    if groups is not None:
        groups = {name: groups[name] for name in names}
        names = [layer for each in groups.values() for layer in each]
    terms = evaluate_terms(network, images, names, groups, criterion, autoencoder, outputs=outputs, dtype=dtype, report=report)
    return fuse(terms, names, criterion) if groups is None else fuse_groups(terms, groups, criterion)


def evaluate_terms(
    network: nn.Module,
    images: Example,
    names: Sequence[str],
    groups: Mapping[str, Any] | None,
    criterion: CriterionSettings,
    autoencoder: AutoencoderSettings,
    *,
    outputs: str = "activated",
    dtype: torch.dtype = torch.float16,
    report: Report | None = None,
) -> dict[str, dict[str, Values]]:
    """Term -> layer -> values of its channels, (K,); `groups`, where there are any, by the layers that they are named by."""
    modules = weighted_layers(network)
    needed = frozenset().union(*(needs(term) for term in criterion.terms))
    with tempfile.TemporaryDirectory(prefix="scap-") as folder:
        path = Path(folder) / "activations.safetensors"
        if needed & {"outputs", "autoencoder"}:
            coupled = groups is not None
            record_activations(network, images, names, path, outputs=outputs, coupled=coupled, dtype=dtype, report=report)
        gatherers: dict[str, Callable[[str], Any]] = {
            "weight": lambda layer: modules[layer].weight.detach().cpu().double().numpy(),
            "outputs": lambda layer: open_activations(path, layer)[1],
            "autoencoder": lambda layer: _fidelity(path, layer, autoencoder, dtype, str(first_tensor(images).device), report),
            "layer": lambda layer: layer,
            "seed": lambda layer: criterion.seed,
            "network": lambda layer: network,
            "images": lambda layer: _one_tensor(images),
            "layers": lambda layer: names if groups is None else groups,
        }
        return {term: evaluate_term(term, names, lambda need, layer: gatherers[need](layer)) for term in criterion.terms}


def _names(network: nn.Module, images: Example, layers: Sequence[str] | None) -> list[str]:
    names = list(layers) if layers is not None else some_prunable_layers(network, part(images, 0, 1))
    check_layers(network, names)
    return names


def _scored(
    network: nn.Module, images: Example, groups: Mapping[str, Collection[str]], needed: Collection[str], coupled: bool
) -> list[str]:
    """Those of `groups` that terms which need `needed` can score; a warning tells of the others, ScapError where it is all."""
    missing: dict[str, str] = {}
    if "images" in needed:
        found = find_consumers(network, list(groups), _one_tensor(part(images, 0, 1)), coupled=coupled)
        missing = {name: readers.obstacle for name, readers in found.items() if readers.obstacle}
    if {"outputs", "autoencoder"} & set(needed):
        calls = _calls(network, images, {layer for each in groups.values() for layer in each})
        for name, each in groups.items():
            for layer in each:
                if calls[layer] != 1:
                    missing[name] = f"{layer!r} runs more than once" if calls[layer] else f"evaluation does not run {layer!r}"
    if missing:
        words = "; ".join(f"{name!r} ({reason})" for name, reason in missing.items())
        if len(missing) == len(groups):
            raise ScapError(f"criterion: its terms can score no layer of this network: {words}. Use another term")
        warnings.warn(f"not scored, so that they stay whole: {words}. Another term may score them", stacklevel=3)
    return [name for name in groups if name not in missing]


def _calls(network: nn.Module, images: Example, layers: Collection[str]) -> Counter[str]:
    """How often evaluation runs each layer."""
    calls: Counter[str] = Counter()
    with undisturbed(network):
        network = copied(network).eval()
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: calls.update([layer]))
        run(network, fitted(part(images, 0, 1), *device_and_precision(network)))
    return calls


def _one_tensor(images: Example) -> Tensor:
    if not isinstance(images, Tensor):
        raise ScapError("criterion: this term runs networks of one argument only; give the images as one tensor")
    return images


def _fidelity(
    activations: Path, layer: str, settings: AutoencoderSettings, dtype: torch.dtype, device: str, report: Report | None
) -> Values:
    path = activations
    if settings.domain == "frequency":
        path = activations.with_name("spectra.safetensors")
        write_spectra(activations, layer, path, dtype=dtype)
    spectra = open_spectra(path, layer, settings.domain)
    fitted = fit_autoencoder(spectra, settings, layer=layer, device=device, report=report)
    return fidelities(fitted, spectra, settings).numpy()
