"""What it changes to round a network's kernels to float16, as `saved_precision: float16` does, which halves its file.

Of the stored baselines of CIFAR-10 (python -m workflow.restore brings them back): how many test images are told right before
and after, how many get another class, and the size of the file.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, parse, read_dataset, say, write_table
from scap.data.datasets import Dataset, normalise
from scap.models.vgg import vgg16
from scap.pruning.files import load_network, save_network
from scap.training.loop import round_kernels

NOTE = "stored networks; images of the 10,000 test images"


@torch.no_grad()
def classes(network: torch.nn.Module, data: Dataset) -> Tensor:
    """The class that the network gives each test image, (N,)."""
    images = normalise(data.test.images, data.mean, data.std, "cpu")
    return torch.cat([network(part).argmax(1) for part in images.split(500)])


def main(options: argparse.Namespace) -> None:
    """One row a stored network."""
    data, _ = read_dataset(options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "fresh.safetensors"] if options.quick else sorted(Path().glob(options.networks))
        if options.quick:
            save_network(files[0], vgg16(width=0.125), architecture="vgg16", arguments={"width": 0.125})
        for path in files:
            say(str(path))
            network = load_network(path)
            before = classes(network, data)
            round_kernels(network)
            after, rounded = classes(network, data), Path(folder) / "rounded.safetensors"
            save_network(rounded, network)
            right = [int((found == data.test.labels).sum()) for found in (before, after)]
            row: Row = {"network": path.stem if options.quick else str(path.parent).removeprefix("results/")}
            row |= {"right": right[0], "right with float16": right[1], "other classes": int((before != after).sum())}
            rows.append(row | {"MB": path.stat().st_size / 1e6, "MB float16": rounded.stat().st_size / 1e6})
    write_table("half_precision", rows, options, NOTE)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", default="results/vgg16-cifar10-*/seed*/baseline.safetensors", help="files, as a pattern")


if __name__ == "__main__":
    main(parse(__doc__, extra=_more))
