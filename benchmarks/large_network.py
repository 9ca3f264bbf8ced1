"""Scoring a large network: ResNet-50, 256 images of 224x224, from images to the score table; peak memory and CPU seconds.

Weights and images are random, as times depend on them through the number of passes only. Each autoencoder has a child process
of its own; its peak is what scoring adds to the network and the images, and holds the pages of files that were read. Beside it
stand the spectra of the largest layer, which are read whole, and those of all layers, which never are in memory together.
A row that is there is not measured again.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import settings_of
from benchmarks.common import Row, earlier_rows, is_there, measured_alone, parse, say, write_table
from benchmarks.networks import made
from scap.criterion.score import score_network
from scap.criterion.settings import AutoencoderSettings
from scap.models.layers import conv_layers
from scap.pruning.surgery import prunable_layers

VARIANTS = (("complex", "linear"), ("complex", "nonlinear"), ("power", "linear"), ("power", "nonlinear"))
NOTE = "random weights and images"


def prepare(name: str, images: int, size: int, settings: AutoencoderSettings) -> Callable[[], Any]:
    """The scoring, ready to run; a tiny one ran before."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    score_network(tiny, torch.rand(4, 3, 8, 8), autoencoder=settings)
    network, data = made("torchvision", name).eval(), torch.randn(images, 3, size, size)
    return lambda: score_network(network, data, autoencoder=settings)


def megabytes_of_layers(network: nn.Module, image: Tensor, layers: list[str], images: int) -> list[float]:
    """Float16 spectra of each layer's X and Y, Y at the size of X."""
    shapes: dict[str, tuple[int, ...]] = {}
    convolutions = conv_layers(network)
    handles = [
        convolutions[layer].register_forward_pre_hook(lambda _, args, layer=layer: shapes.update({layer: args[0].shape}))
        for layer in layers
    ]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return [
        2 * images * (shapes[layer][1] + convolutions[layer].out_channels) * shapes[layer][2] * shapes[layer][3] / 1e6
        for layer in layers
    ]


def main(options: argparse.Namespace) -> None:
    """One row an autoencoder."""
    name, images, size = ("resnet18", 4, 32) if options.quick else ("resnet50", options.images, 224)
    network, image = made("torchvision", name).eval(), torch.randn(1, 3, size, size)
    layers = prunable_layers(network, image)
    spectra = megabytes_of_layers(network, image, layers, images)
    rows: list[Row] = earlier_rows("large_network", options, NOTE)
    for representation, kind in VARIANTS[: 1 if options.quick else None]:
        same: Row = {"network": name, "image": size, "N": images, "representation": representation, "autoencoder": kind}
        if is_there(same, rows):
            continue
        say(f"{representation}, {kind}")
        peak, taken = measured_alone(prepare, name, images, size, settings_of(options, representation, kind))
        row: Row = same | {"layers": len(layers), "CPU s": taken, "ms an image": 1e3 * taken / images, "peak MB": peak / 1e6}
        rows.append(row | {"largest layer MB": max(spectra), "all layers MB": sum(spectra)})
        write_table("large_network", rows, options, NOTE)


if __name__ == "__main__":
    main(parse(__doc__, images=256))
