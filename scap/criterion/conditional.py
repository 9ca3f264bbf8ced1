"""Conditional fidelity: what the next layers lose when a channel goes and the channels that stay make up for it.

Three forms (docs/conditional.md, C1 to C6): `channelwise`, from the second moments of channels; `spectral`, the same per
frequency; `taps`, from the Gram matrix of the consumer's unfolded inputs, which is the error that compensation leaves.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scap.checks import check_number
from scap.criterion.elimination import Problem, eliminate
from scap.criterion.forms import FORMS, Form, form_of
from scap.errors import ScapError
from scap.models.modes import evaluating
from scap.pruning.copies import check_network, copied, undisturbed
from scap.pruning.next_layers.consumers import Consumer, Readers, find_consumers
from scap.pruning.next_layers.least_squares import LARGEST_RIDGE
from scap.pruning.next_layers.moments import Moments, check_images, chunks, stream
from scap.pruning.next_layers.unfolding import groups_of, samples

MEMORY = 2**30  # bytes of moments that one pass over the images may gather
Reading = tuple[Consumer, Form]
Layers = Sequence[str] | Mapping[str, Any]


def conditional_scores(
    network: nn.Module,
    images: Tensor,
    layers: Layers,
    *,
    form: str = "channelwise",
    batch_size: int = 64,
    ridge: float | None = None,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Scores (K,) in [0, 1] per convolution: the relative error of its consumers once a channel and all below it are gone.

    Channels are removed one by one, each time the one whose removal costs the consumers' outputs least while the channels
    that stay reconstruct it (least squares). The score is the sum of costs up to and including a channel over the energy
    of the consumers' outputs (equation C4), so a threshold is the relative error that a layer is allowed, and the plan of a
    higher threshold is contained in that of a lower one.

    Args:
        network: the network, which is not altered.
        images: calibration images (N, channels, H, W), normalised as in training.
        layers: module paths of convolutions; or a mapping of coupled groups by the layers that they are named by, where the
            channels that go at once get one score, and the costs of all layers that read any of them add up.
        form: `channelwise`, `spectral` or `taps`.
        batch_size: images a forward pass.
        ridge: share of each input's own energy that is added to it; None takes the form's own.
        report: receives {"layer": done, "total": layers}.

    Returns:
        Layer -> float64 scores of its K output channels; the channel that goes last has the largest.

    Raises:
        ScapError: for an unknown form or layer, for images or activations that are not finite, and for a layer whose
            consumers cannot be told.
    """
    if form not in FORMS:
        raise ScapError(f"form: {form!r} is unknown; choose from {', '.join(FORMS)}")
    if ridge is not None:  # above 0 where channels are equal
        check_number(ridge, "ridge", 0, LARGEST_RIDGE)
    check_images(images, batch_size)
    check_network(network)
    with undisturbed(network):
        return _conditional_scores(evaluating(copied(network)), images, layers, form, batch_size, ridge, report)


def _conditional_scores(
    network: nn.Module,
    images: Tensor,
    layers: Layers,
    form: str,
    batch_size: int,
    ridge: float | None,
    report: Callable[[Mapping[str, float]], None] | None,
) -> dict[str, NDArray[np.float64]]:
    readers = _readers(network, layers, images[:1])
    readings = _readings(network, images[:2], readers, form)
    names = list(layers)
    sizes = [sum(source.size() for _, source in readings[layer]) for layer in names]
    scores: dict[str, NDArray[np.float64]] = {}
    shortest = (0.0, "")
    for run in chunks(sizes, MEMORY):
        gathered = {source.key(): source for index in run for _, source in readings[names[index]]}
        _gather(network, images, list(gathered.values()), batch_size)
        for layer in (names[index] for index in run):
            sources = [(consumer, gathered[own.key()]) for consumer, own in readings[layer]]
            shortest = max([shortest, *((source.inputs_read() / source.moments.count, layer) for _, source in sources)])
            problems = [source.problem(c, source.ridge if ridge is None else ridge) for c, source in sources]
            scores[layer] = _scores(layer, problems)[readers[layer].units]
            if report is not None:
                report({"layer": len(scores), "total": len(names)})
        for source in gathered.values():
            source.moments = Moments()
    _warn(*shortest, len(images))
    return scores


def _warn(ratio: float, layer: str, images: int) -> None:
    if ratio > 1:
        warnings.warn(
            f"layer {layer!r}: {images} calibration images give fewer samples than its consumers have inputs to tell apart, "
            f"so that the ridge decides much of the ranking; {math.ceil(ratio * images)} images would give as many",
            stacklevel=4,
        )


def _readers(network: nn.Module, layers: Layers, image: Tensor) -> dict[str, Readers]:
    readers = find_consumers(network, list(layers), image, coupled=isinstance(layers, Mapping))
    for layer, found in readers.items():
        if found.obstacle:
            raise ScapError(f"layer {layer!r} has no conditional score: {found.obstacle}. Leave it out, or use another term")
    return readers


def _readings(network: nn.Module, images: Tensor, readers: dict[str, Readers], form: str) -> dict[str, list[Reading]]:
    inputs: dict[str, Tensor] = {}

    def receive(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        inputs[name] = read.clone()

    names = {consumer.name for found in readers.values() for consumer in found.consumers}
    stream(network, images, names, receive, len(images))
    return {
        layer: [(consumer, form_of(form, network, consumer, inputs[consumer.name])) for consumer in found.consumers]
        for layer, found in readers.items()
    }


def _gather(network: nn.Module, images: Tensor, sources: list[Form], batch_size: int) -> None:
    def receive(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        asking = [source for source in sources if source.name == name]
        layer = asking[0].layer
        unfolded = samples(layer, read, outputs, first)[0].chunk(groups_of(layer), 1)
        for source in asking:
            source.add(read, unfolded[source.group])

    stream(network, images, {source.name for source in sources}, receive, batch_size)


def _scores(layer: str, problems: list[Problem]) -> NDArray[np.float64]:
    channels = 1 + max(int(problem.channels.max()) for problem in problems)
    energy = sum(problem.energy() for problem in problems)
    if not math.isfinite(energy):
        raise ScapError(
            f"layer {layer!r}: its consumers give NaN or infinity on the calibration images: the network has diverged"
        )
    try:
        order, costs = eliminate(problems, channels)
    except torch.linalg.LinAlgError as error:
        raise ScapError(f"layer {layer!r}: what its consumers read depends on itself linearly; give a larger ridge") from error
    scores = np.zeros(channels)
    if energy > 0:
        scores[order] = np.clip(np.cumsum(costs) / energy, 0, 1)
    return scores
