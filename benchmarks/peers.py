"""Which channels, judged by others: peers with the same widths, the same help and the same images. No network is trained.

For each trained network (files by scap.save_network) and each share of the MACs, all layers keep the same share of channels.
Criteria: conditional fidelity; Torch-Pruning's magnitudes, FPGM, Taylor and diagonal Hessian (Optimal Brain Damage); HRank;
random channels. `fold` merges channels in place of removing some: k-means of a layer's filters (batch norm included), the
mean of each cluster, its consumers' weights summed (after Wang et al., ICLR 2025); its help is batch-norm repair alone.
Trials: `nonlinear`, conditional fidelity where y, y^2 and relu(y - mean) of the channels that stay may replace one, and
`low capacity`, where only the first half of their principal directions may.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from benchmarks import criteria
from benchmarks.common import Row, machine, parse, read_dataset, say
from scap.criterion.conditional import conditional_scores
from scap.criterion.elimination import Problem, eliminate
from scap.data.datasets import Dataset, normalise
from scap.models.layers import conv_layers
from scap.pruning.files import load_network
from scap.pruning.next_layers.consumers import find_consumers, slopes
from scap.pruning.next_layers.moments import Moments, stream
from scap.pruning.next_layers.unfolding import samples
from scap.pruning.plans import plan_of_widths
from scap.pruning.prune import prune_network
from scap.pruning.surgery import prunable_layers
from scap.pruning.widths import uniform_widths
from scap.training.loop import evaluate

HELP = ("none", "batch-norm", "full")
RIDGE = 1e-3


def read_by(network: nn.Module, images: Tensor, layers: list[str], features: Callable[[Tensor, Tensor], Tensor]) -> dict:
    """Layer -> (second moments of features of what its consumer reads, S of the consumer's scaled weights by tap)."""
    readers = find_consumers(network, layers, images[:1])
    consumers = {layer: readers[layer].consumers[0] for layer in layers}  # of a chain: one each
    means: dict[str, Tensor] = {}
    moments = {consumer.name: Moments() for consumer in consumers.values()}

    def average(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        total = read.double().flatten(2).mean(2).sum(0) if read.ndim == 4 else read.double().sum(0)
        means[name] = means.get(name, 0) + total / len(images)

    def gather(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        layer, columns = network.get_submodule(name), by_name[name].columns
        unfolded = samples(layer, read, outputs, first)[0]
        channels = unfolded[:, columns[:, columns.shape[1] // 2]]  # the centre tap
        moments[name].add(features(channels, means[name][: channels.shape[1]].to(channels)))

    by_name = {consumer.name: consumer for consumer in consumers.values()}
    stream(network, images, list(by_name), average, 64)
    stream(network, images, list(by_name), gather, 64)
    found = {}
    for layer, consumer in consumers.items():
        module = network.get_submodule(consumer.name)
        matrix = slopes(network, consumer.norm, len(module.weight))[:, None] * module.weight.detach().double().flatten(1)
        taps = matrix[:, consumer.columns].permute(2, 0, 1).flatten(0, 1)  # (T*O, K)
        found[layer] = (moments[consumer.name].second(layer), taps)
    return found


def nonlinear(network: nn.Module, images: Tensor, layers: list[str]) -> criteria.Scores:
    """Conditional fidelity where the channels that stay offer y, y^2 and relu(y - mean)."""
    scores = {}
    for layer, (second, weights) in read_by(
        network, images, layers, lambda y, mean: torch.cat([y, y * y, (y - mean).relu()], 1)
    ).items():
        count = weights.shape[1]
        second.diagonal().mul_(1 + RIDGE).add_(1e-12)
        wide = torch.cat([weights, weights.new_zeros(len(weights), 2 * count)], 1)
        blocks = torch.arange(3 * count).view(3, count).T
        order, costs = eliminate([Problem(second[None], wide[None], torch.arange(count), blocks)], count)
        scores[layer] = torch.zeros(count, dtype=torch.float64)
        scores[layer][torch.as_tensor(np.array(order))] = torch.as_tensor(np.cumsum(costs))
    return scores


def low_capacity(network: nn.Module, images: Tensor, layers: list[str], share: float = 0.5) -> criteria.Scores:
    """Greedy: the channel goes whose loss is least where `share` of the principal directions of those that stay replace it."""
    scores = {}
    for layer, (second, weights) in read_by(network, images, layers, lambda y, mean: y).items():
        gram, count = weights.T @ weights, weights.shape[1]
        gone: list[int] = []
        while len(gone) < count - 1:
            stay = [channel for channel in range(count) if channel not in gone]
            costs = [_loss(second, gram, [*gone, channel], share) for channel in stay]
            gone.append(stay[int(np.argmin(costs))])
        scores[layer] = torch.full((count,), float(count), dtype=torch.float64)
        scores[layer][gone] = torch.arange(count - 1, dtype=torch.float64)
    return scores


def _loss(second: Tensor, gram: Tensor, gone: list[int], share: float) -> float:
    """tr(M_RR E_RR): E is what the leading principal directions of the channels that stay leave of those that are gone."""
    kept = torch.ones(len(second), dtype=torch.bool)
    kept[gone] = False
    values, vectors = torch.linalg.eigh(second[kept][:, kept])
    size = max(1, round(share * len(values)))
    directions = vectors[:, -size:] / values[-size:].clamp(min=1e-12).sqrt()
    explained = second[gone][:, kept] @ directions
    return float((gram[gone][:, gone] * (second[gone][:, gone] - explained @ explained.T)).sum())


def fold(network: nn.Module, images: Tensor, widths: dict[str, int]) -> tuple[nn.Module, dict[str, list[int]]]:
    """A network whose clusters of filters are their mean, read once by the consumers, and the plan that keeps one of each."""
    folded, plan = copy.deepcopy(network), {}
    modules = dict(folded.named_modules())
    readers = find_consumers(network, list(widths), images[:1])
    for layer, width in widths.items():
        conv, norm = modules[layer], modules[layer.replace("conv", "bn")]
        norm_scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        filters = torch.cat([conv.weight.flatten(1) * norm_scale[:, None], norm.bias[:, None]], 1).detach()
        labels = KMeans(width, n_init=3, random_state=0).fit(filters.numpy()).labels_
        clusters = [np.flatnonzero(labels == label) for label in range(width)]
        consumer = readers[layer].consumers[0]
        weight = modules[consumer.name].weight.detach().flatten(1)
        with torch.no_grad():
            for cluster in clusters:
                for values in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    values[cluster] = values[cluster].mean(0)
                summed = weight[:, consumer.columns[cluster]].sum(1)
                weight[:, consumer.columns[cluster]] = 0  # of the others, which are the same channel now
                weight[:, consumer.columns[cluster[0]]] = summed
            modules[consumer.name].weight.copy_(weight.view_as(modules[consumer.name].weight))
        plan[layer] = sorted(int(cluster[0]) for cluster in clusters)
    return folded, plan


def rankings(network: nn.Module, images: Tensor, labels: Tensor, layers: list[str], options) -> dict[str, Callable]:
    """Criterion -> what computes its scores."""
    import torch_pruning

    known, generator = torch_pruning.importance, torch.Generator().manual_seed(0)
    convolutions = conv_layers(network)
    found = {
        f"conditional, {form}": partial(conditional_scores, network, images, layers, form=form)
        for form in ("channelwise", "spectral", "taps")
    }
    for name, importance in {"L1": known.GroupMagnitudeImportance(p=1), "L2": known.GroupMagnitudeImportance(p=2)}.items():
        found[name] = partial(criteria.magnitude, network, images, layers, importance)
    found["FPGM"] = partial(criteria.magnitude, network, images, layers, known.FPGMImportance())
    found["Taylor"] = partial(criteria.taylor, network, images, labels, layers)
    found["Hessian"] = partial(criteria.hessian, network, images, labels, layers)
    found["HRank"] = partial(criteria.hrank, network, images, layers)
    found["random"] = lambda: {layer: torch.rand(convolutions[layer].out_channels, generator=generator) for layer in layers}
    found["nonlinear"] = partial(nonlinear, network, images, layers)
    if options.trials:
        found["low capacity"] = partial(low_capacity, network, images, layers)
    return found


def measured(network: nn.Module, data: Dataset) -> Row:
    """Top-1 in percent, on held-out images and on test images."""
    parts = {"holdout_top1": data.holdout, "top1": data.test}
    return {name: evaluate(network, part, data.mean, data.std, "cpu") for name, part in parts.items()}


def of_one(file: Path, data: Dataset, options: argparse.Namespace, write: Callable[[Row], None]) -> None:
    """The rows of one network."""
    network = load_network(file).eval()
    images = normalise(data.train.images[: options.images], data.mean, data.std, "cpu")
    layers, labels = prunable_layers(network, images[:1]), data.train.labels[: options.images]
    widths = {share: uniform_widths(network, layers, images[:1], macs=share) for share in options.shares}
    same = {"network": file.parent.parent.name, "seed": file.parent.name}
    write(same | {"criterion": "(unpruned)"} | measured(network, data))
    for name, function in rankings(network, images, labels, layers, options).items():
        say(f"{file}: {name}")
        start = time.process_time()
        scores = function()
        seconds = time.process_time() - start
        table = pd.concat(
            pd.DataFrame({"layer": layer, "channel": range(len(values)), "score": np.asarray(values, dtype=float)})
            for layer, values in scores.items()
        )
        table["score"] = table.groupby("layer")["score"].rank(pct=True)
        for share, counts in widths.items():
            plan = plan_of_widths(table, counts)
            for how in HELP if name in ("conditional, channelwise", "L1") else HELP[-1:]:
                smaller = prune_network(network, plan, images, compensate=how)
                point = {"criterion": name, "compensation": how, "macs_left": share, "cpu_seconds": seconds}
                write(same | point | measured(smaller, data))
    for share, counts in widths.items():
        folded, plan = fold(network, images, counts)
        smaller = prune_network(folded, plan, images, compensate="batch-norm")
        write(same | {"criterion": "fold", "compensation": "batch-norm", "macs_left": share} | measured(smaller, data))


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this script understands beside what all do."""
    parser.add_argument("networks", nargs="+", type=Path, help="trained networks by scap.save_network (chains such as VGG16)")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.15], help="shares of the MACs that are left")
    parser.add_argument("--holdout", type=int, default=5000, help="training images that the networks never saw")
    parser.add_argument("--trials", action="store_true", help="`low capacity` too, which takes minutes")


def main(options: argparse.Namespace) -> None:
    """Every network's rows, written one by one."""
    data, _ = read_dataset(options, holdout=options.holdout)
    path = options.results / "peers.csv"
    options.results.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    note = f"{options.images} calibration images; cpu_seconds: from images to scores"

    def write(row: Row) -> None:
        rows.append(row)
        pd.DataFrame(rows).assign(note=note, machine=machine()).to_csv(path, index=False, float_format="%.6g")

    for file in options.networks:
        of_one(file, data, options, write)


if __name__ == "__main__":
    main(parse(__doc__, extra=arguments))
