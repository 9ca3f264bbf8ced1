"""The whole criterion in one call."""

import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scap.checks import check_flag, check_function, checked_names
from scap.criterion.activations import check_layers, check_recording, checked_images, part, record_activations
from scap.criterion.autoencoder import fidelities
from scap.criterion.chains import Hooks
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.fusion import evaluate_term, fuse
from scap.criterion.groups import fuse_groups
from scap.criterion.settings import AutoencoderSettings, Criterion, CriterionSettings, checked_settings
from scap.criterion.spectra import open_activations, open_spectra, write_spectra
from scap.criterion.terms import Values, needs
from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, first_tensor, fitted, gathered
from scap.models.layers import weighted_layers
from scap.models.modes import evaluating
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
    criterion: Criterion = None,
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
        layers: Module paths of convolutions; by default all that can be pruned, without those that only training runs where
            a term needs images (a warning names them).
        coupled: Score groups of layers that must lose their channels together, `layers` being those that they are named by
            (`prunable_layers(..., coupled=True)`): terms are fused over the layers of a group as `criterion.together` says;
            the conditional terms sum the costs of all layers that read it.
        criterion: The name of a term, such as "conditional"; terms with their weights; or CriterionSettings, which also say
            how they are fused. By default fidelity (3/4) and the L1 norm (1/4), our interpretation of the paper.
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
        >>> table = scap.score_network(network, torch.rand(64, 3, 8, 8), criterion="l1")
        >>> list(table.columns), len(table)
        (['layer', 'channel', 'l1', 'score'], 8)
    """
    check_network(network)
    check_flag(coupled, "coupled")
    check_function(report, "report")
    layers = None if layers is None else checked_names(layers, "layers")
    criterion, autoencoder = checked_settings(criterion, autoencoder)
    check_recording(outputs, dtype)
    needed = frozenset().union(*(needs(term) for term in criterion.terms))
    of_images = needed & {"outputs", "autoencoder", "images"}  # else weights tell all
    if coupled or layers is None or of_images:
        images = checked_images(gathered(images))
    groups = coupled_groups(network, part(images, 0, 1), layers) if coupled else None
    names = _names(network, images, layers) if groups is None else list(groups)
    if layers is None and of_images:
        names = _run_by_evaluation(network, part(images, 0, 1), groups or {name: [name] for name in names})
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
    """Term -> layer -> values of its channels, (K,); `groups`, where there are any, by the layers that they are named by.

    The same in whatever mode of gradients, autocast and precision of products the caller is.
    """
    modules = weighted_layers(network)
    needed = frozenset().union(*(needs(term) for term in criterion.terms))
    with tempfile.TemporaryDirectory(prefix="scap-") as folder, undisturbed(network), torch.enable_grad():
        path = Path(folder) / "activations.safetensors"
        if needed & {"outputs", "autoencoder"}:
            coupled = groups is not None
            with _saying_of_what(path):
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


def _run_by_evaluation(network: nn.Module, image: Example, groups: Mapping[str, Collection[str]]) -> list[str]:
    """The groups of which evaluation runs every layer: of the others, which a warning names, images tell nothing."""
    ran: set[str] = set()
    with undisturbed(network):
        network = evaluating(copied(network))
        hooks = Hooks(network, [layer for each in groups.values() for layer in each])
        hooks.receive = lambda layer, kind, values: ran.add(layer)
        hooks.run(fitted(image, *device_and_precision(network)))
    idle = [name for name, each in groups.items() if not ran.issuperset(each)]
    if len(idle) == len(groups):
        raise ScapError("criterion: evaluation runs no layer that can be pruned; score them by terms of weights alone, as l1")
    if idle:
        words = f"layers that only training runs are not scored and stay whole: {', '.join(idle)}"
        warnings.warn(f"{words}; terms of weights alone, as l1, score them", stacklevel=3)
    return [name for name in groups if name not in idle]


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
        with _saying_of_what(path, f" of layer {layer!r}"):
            write_spectra(activations, layer, path, dtype=dtype)
    spectra = open_spectra(path, layer, settings.domain)
    fitted = fit_autoencoder(spectra, settings, layer=layer, device=device, report=report)
    return fidelities(fitted, spectra, settings).numpy()


@contextmanager
def _saying_of_what(path: Path, layer: str = "") -> Iterator[None]:
    """Errors about values say of what they are, not in which temporary file: it is gone when they are read."""
    try:
        yield
    except ScapError as error:
        said = str(error).removeprefix(f"{path}: the ")
        if said == str(error):  # about the file itself, or about something else
            raise
        raise ScapError(f"{path.stem}{layer}: the {said}") from error
