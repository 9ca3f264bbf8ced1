"""What criteria cost on the same network and images, in one run: SCAP and its conditional forms, Torch-Pruning's, HRank.

CPU seconds from the network and the images to one score per channel of every prunable layer, and their ratio to Taylor's.
With compensation: the better half of every layer's channels is kept besides, and the network pruned and compensated in
full. Torch-Pruning's times include its dependency graph. Taylor takes one backward pass per batch, Hessian one per image
(Torch-Pruning's own recipe; here with batches of one image, which is quicker than its per-sample passes through the graph of
a whole batch). HRank (Lin et al. 2020): the rank of every feature map after the activation, averaged over the images; the
ranks of a batch in one call. All take turns, three times, those of more than a minute once; the medians count.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cases import settings_of
from benchmarks.common import Row, calibration, load_libraries, parse, say, write_table
from scap.criterion.activations import Follower
from scap.criterion.conditional import conditional_scores
from scap.criterion.forms import FORMS
from scap.criterion.score import score_network
from scap.models.layers import conv_layers
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.surgery import prunable_layers

Scores = dict[str, Tensor]
TURNS, LIMIT = 3, 60  # LIMIT: CPU seconds beyond which one turn is enough
REFERENCE = "Torch-Pruning Taylor"


def scap(network: nn.Module, images: Tensor, layers: list[str], settings) -> Scores:
    """The score table as tensors."""
    table = score_network(network, images, layers=layers, autoencoder=settings)
    return {layer: torch.tensor(part["score"].to_numpy()) for layer, part in table.groupby("layer")}


def conditional(network: nn.Module, images: Tensor, layers: list[str], form: str, compensate: bool) -> Scores:
    """Conditional fidelity; with `compensate`, half of the channels go too, and those that stay make up for them."""
    scores = conditional_scores(network, images, layers, form=form)
    if compensate:
        plan = {layer: sorted(np.argsort(values)[len(values) // 2 :].tolist()) for layer, values in scores.items()}
        prune_and_compensate(network, plan, images)
    return {layer: torch.as_tensor(values) for layer, values in scores.items()}


def hrank(network: nn.Module, images: Tensor, layers: list[str], batch_size: int = 64) -> Scores:
    """Mean rank of each channel's feature maps."""
    ranks = {layer: torch.zeros(conv_layers(network)[layer].out_channels, dtype=torch.float64) for layer in layers}

    def receive(layer: str, kind: str, values: Tensor) -> None:
        if kind == "outputs":
            ranks[layer] += torch.linalg.matrix_rank(values).double().sum(0)

    follower = Follower(copy.deepcopy(network).eval(), layers)
    follower.receive = receive
    with torch.no_grad():
        for batch in images.split(batch_size):
            follower.run(batch)
    return {layer: total / len(images) for layer, total in ranks.items()}


def group_scores(network: nn.Module, example: Tensor, layers: list[str], importance: Callable) -> Scores:
    """A Torch-Pruning importance of every layer's group."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(network, example, verbose=False)
    convolutions, prune = conv_layers(network), torch_pruning.prune_conv_out_channels
    return {
        layer: importance(graph.get_pruning_group(conv, prune, list(range(conv.out_channels))))
        for layer, conv in convolutions.items()
        if layer in layers
    }


def magnitude(network: nn.Module, images: Tensor, layers: list[str], importance: Callable) -> Scores:
    """Importances that need the weights alone."""
    return group_scores(network, images[:1], layers, importance)


def taylor(network: nn.Module, images: Tensor, labels: Tensor, layers: list[str], batch_size: int = 64) -> Scores:
    """First order: gradients of the mean loss over all images."""
    import torch_pruning

    network.zero_grad()
    for batch, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        (cross_entropy(network(batch), wanted, reduction="sum") / len(images)).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    scores = _with_gradients(network, images, layers, torch_pruning.importance.GroupTaylorImportance(), gradients)
    network.zero_grad()
    return scores


def hessian(network: nn.Module, images: Tensor, labels: Tensor, layers: list[str]) -> Scores:
    """Diagonal of the Hessian: squared gradients of every image's loss."""
    import torch_pruning

    importance = torch_pruning.importance.GroupHessianImportance()
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        network.zero_grad()
        cross_entropy(network(image), label).backward()
        importance.accumulate_grad(network)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return _with_gradients(network, images, layers, importance, gradients)


def _with_gradients(network: nn.Module, images: Tensor, layers: list[str], importance: Callable, gradients: dict) -> Scores:
    """Building the dependency graph may drop the gradients: put them back before the importance reads them."""

    def with_gradients(group):
        for name, parameter in network.named_parameters():
            parameter.grad = parameter.grad if parameter.grad is not None else gradients[name]
        return importance(group)

    return group_scores(network, images[:1], layers, with_gradients)


def candidates(network: nn.Module, images: Tensor, labels: Tensor, layers: list[str], options) -> dict[str, Callable]:
    """Criterion -> what computes its scores."""
    import torch_pruning

    known = torch_pruning.importance
    weights_only = {
        "Torch-Pruning magnitude, L1": known.GroupMagnitudeImportance(p=1),
        "Torch-Pruning magnitude, L2": known.GroupMagnitudeImportance(p=2),
        "Torch-Pruning FPGM": known.FPGMImportance(),
    }
    functions: dict[str, Callable] = {
        f"SCAP {representation}, {kind}": partial(scap, network, images, layers, settings_of(options, representation, kind))
        for representation in ("complex", "power")
        for kind in ("linear", "nonlinear")
    }
    functions |= {
        f"SCAP conditional, {form}{', with compensation' * compensate}": partial(
            conditional, network, images, layers, form, compensate
        )
        for form in FORMS
        for compensate in (False, True)
    }
    functions |= {name: partial(magnitude, network, images, layers, how) for name, how in weights_only.items()}
    functions[REFERENCE] = partial(taylor, network, images, labels, layers)
    functions["Torch-Pruning Hessian"] = partial(hessian, network, images, labels, layers)
    functions["HRank"] = partial(hrank, network, images, layers)
    return functions


def cpu_seconds(functions: dict[str, Callable[[], Scores]], channels: int, turns: int) -> dict[str, float]:
    """Median CPU seconds of each criterion, in turns; each must give a score to every channel."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns):
        for name, function in functions.items():
            if any(taken > LIMIT for taken in times[name]):
                continue
            say(f"{name} ({turn + 1} of {turns})")
            start = time.process_time()
            scores = function()
            times[name].append(time.process_time() - start)
            if sum(len(values) for values in scores.values()) != channels:
                raise RuntimeError(f"{name}: some channels have no score")
    return {name: statistics.median(values) for name, values in times.items()}


def main(options: argparse.Namespace) -> None:
    """CPU seconds of each criterion."""
    network, images, data, what = calibration(options)
    layers, labels = prunable_layers(network, images[:1]), data.train.labels[: options.images]
    channels = sum(conv_layers(network)[layer].out_channels for layer in layers)
    load_libraries()
    times = cpu_seconds(candidates(network, images, labels, layers, options), channels, 1 if options.quick else TURNS)
    rows: list[Row] = [
        {
            "criterion": name,
            "CPU s": taken,
            "ms an image": 1e3 * taken / len(images),
            "relative to Taylor": taken / times[REFERENCE],
        }
        for name, taken in times.items()
    ]
    write_table("criteria", rows, options, what)


if __name__ == "__main__":
    main(parse(__doc__))
