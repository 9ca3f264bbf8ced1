"""Latency of networks pruned to half of their FLOPs: ratios to the whole network, eager and by onnxruntime, and file sizes.

Uniform widths of all groups of layers that can be pruned, with random weights, as times do not depend on their values. Channel
counts are odd, or multiples of 8. Whole and pruned network are called in turns; `spread` is the largest distance between the
quartiles of a ratio. `difference` is onnxruntime's from eager outputs, relative to the largest.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import scap
from benchmarks.common import Row, earlier_rows, parse, say, write_table
from benchmarks.networks import example_for, made
from scap.models.build import build_network
from scap.pruning.export import open_onnx
from scap.pruning.widths import uniform_widths

NETWORKS = {"vgg16": 32, "resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64}
SHARE = 0.5
NOTE = (
    "Ratios of medians' pairs, pruned / whole; batches of 1 and 32 images; vgg16 is that for CIFAR-10, all others torchvision's"
)


def widths_of(network: nn.Module, example: torch.Tensor, odd: bool) -> dict[str, list[int]]:
    """A plan at half of the FLOPs: channel counts that are odd, or multiples of 8."""
    layers = scap.prunable_layers(network, example, coupled=True)
    widths = uniform_widths(network, layers, example, macs=SHARE, multiple=1 if odd else 8)
    counts = {layer: width - (odd and width % 2 == 0) for layer, width in widths.items()}
    return {layer: list(range(max(1, count))) for layer, count in counts.items()}


def rows_of(name: str, size: int, batches: dict[int, int]) -> list[Row]:
    """One network: a row for odd channel counts, and one for multiples of 8. `batches`: images of a batch -> repeats."""
    example = example_for(name, size)
    network = (build_network("vgg16") if name == "vgg16" else made("torchvision", name)).eval()
    before = scap.count_operations(network, example)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {key: Path(folder) / f"{key}.onnx" for key in ("whole", "pruned")}
        scap.export_onnx(network, files["whole"], example)
        for odd in (True, False):
            pruned = scap.prune_network(network, widths_of(network, example, odd), example, coupled=True).eval()
            difference = scap.export_onnx(pruned, files["pruned"], example)
            after = scap.count_operations(pruned, example)
            row: Row = {"network": name, "image": size, "channels": "odd" if odd else "multiples of 8"}
            row |= {
                f"{words} left %": 100 * after[key] / before[key] for key, words in (("macs", "MACs"), ("params", "parameters"))
            }
            row |= {
                "file left %": 100 * files["pruned"].stat().st_size / files["whole"].stat().st_size,
                "difference": difference,
            }
            sessions = {key: open_onnx(file) for key, file in files.items()}
            spreads = []
            for runtime, pair in (("eager", (pruned, network)), ("onnxruntime", (sessions["pruned"], sessions["whole"]))):
                for images, repeats in batches.items():
                    given = example.repeat(images, 1, 1, 1)
                    found = scap.measure_latency(pair[0], given, other=pair[1], warmup=2, repeats=repeats)
                    row[f"{runtime} {images}"] = found.ratio
                    spreads.append(found.ratio_spread or 0.0)
            rows.append(row | {"spread": max(spreads)})
            say(str(rows[-1]))
    return rows


def main(options: argparse.Namespace) -> None:
    """A network that has its rows is not measured again: what was stopped resumes."""
    rows = earlier_rows("latency", options, NOTE)
    batches = {1: 3} if options.quick else {1: 40, 32: 7}
    for name, size in list(NETWORKS.items())[: 1 if options.quick else None]:
        if name not in {row["network"] for row in rows}:
            rows += rows_of(name, size, batches)
            write_table("latency", rows, options, NOTE)


if __name__ == "__main__":
    main(parse(__doc__))
