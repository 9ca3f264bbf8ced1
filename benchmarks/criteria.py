"""What criteria cost on the same network and images, in one run: SCAP, Torch-Pruning's importances, HRank.

Every time is from the network and the images to one score per channel of every prunable layer. Torch-Pruning's include its
dependency graph. Taylor takes one backward pass per batch, Hessian one per image (Torch-Pruning's own recipe; here with
batches of one image, which is quicker than its per-sample passes through the graph of a whole batch). HRank (Lin et al.
2020): the rank of every feature map after the activation, averaged over the images; the ranks of a batch in one call.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cases import settings_of
from benchmarks.common import Row, calibration, load_libraries, parse, say, write_table
from scap.criterion.activations import Follower
from scap.criterion.score import score_network
from scap.models.layers import conv_layers
from scap.pruning.surgery import prunable_layers

Scores = dict[str, Tensor]


def scap(network: nn.Module, images: Tensor, layers: list[str], settings) -> Scores:
    """The score table as tensors."""
    table = score_network(network, images, layers=layers, autoencoder=settings)
    return {layer: torch.tensor(part["score"].to_numpy()) for layer, part in table.groupby("layer")}


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
    functions |= {name: partial(magnitude, network, images, layers, how) for name, how in weights_only.items()}
    functions["Torch-Pruning Taylor"] = partial(taylor, network, images, labels, layers)
    functions["Torch-Pruning Hessian"] = partial(hessian, network, images, labels, layers)
    functions["HRank"] = partial(hrank, network, images, layers)
    return functions


def main(options: argparse.Namespace) -> None:
    """Seconds of each criterion."""
    network, images, data, what = calibration(options)
    layers, labels = prunable_layers(network, images[:1]), data.train.labels[: options.images]
    channels = sum(conv_layers(network)[layer].out_channels for layer in layers)
    load_libraries()
    rows: list[Row] = []
    for name, function in candidates(network, images, labels, layers, options).items():
        say(name)
        start = time.perf_counter()
        scores = function()
        elapsed = time.perf_counter() - start
        if sum(len(values) for values in scores.values()) != channels:
            raise RuntimeError(f"{name}: some channels have no score")
        rows.append({"criterion": name, "s": elapsed, "ms an image": 1e3 * elapsed / len(images)})
    reference = next(row["s"] for row in rows if row["criterion"] == "SCAP complex, nonlinear")
    write_table("criteria", [row | {"relative to SCAP": row["s"] / reference} for row in rows], options, what)


if __name__ == "__main__":
    main(parse(__doc__))
