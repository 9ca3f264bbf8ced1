"""How far one training epoch is from what the machine allows, per layer of VGG16, and where the rest goes.

The floor is the larger of two times. Bytes that must move: the cached spectra in float16 once, and per step the
parameters, their gradient and Adam's two moments (four read, three written), over the bandwidth of a large copy (read
and write both counted). Multiplications: the projections of both parts, forward and for the gradient of the rows, and
the similarities, over the rate of a large float32 matrix product. Both rates are measured in the same run.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import (
    Case,
    open_synthetic_spectra,
    settings_of,
    untrained,
    vgg16_cases,
    write_synthetic_spectra,
)
from benchmarks.common import Row, parse, say, seconds, write_table
from scap.autoencoder import AutoencoderSettings, row_shape
from scap.fitting import train_autoencoder
from scap.spectra import Layout, Spectra

PROFILED = ("conv1_2", "conv5_1, conv5_2, conv5_3")
ADAM_PASSES = 7  # reads of weight, gradient and both moments; writes of weight and both moments


def copy_bandwidth(megabytes: int) -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds({"copy": lambda: target.copy_(source)}, repeats=7)["copy"]


def matmul_rate(size: int) -> float:
    """Multiplications (with their additions) per second of a float32 matrix product."""
    matrix, product = torch.rand(size, size), torch.empty(size, size)
    return size**3 / seconds({"matmul": lambda: torch.matmul(matrix, matrix, out=product)}, repeats=7)["matmul"]


def bytes_per_epoch(case: Case, images: int, settings: AutoencoderSettings) -> int:
    """What must move between memory and processor."""
    steps = -(-images // settings.batch_size)
    return images * (case.inputs + case.outputs) * case.side**2 * 2 + steps * ADAM_PASSES * 4 * parameters(case, settings)


def parameters(case: Case, settings: AutoencoderSettings) -> int:
    """Weights of the layer's autoencoder, without the d biases."""
    channels, size = row_shape(case.inputs, Layout(case.side, case.side), settings.representation)
    return (2 * settings.bottleneck + 1) * channels * size


def multiplications_per_epoch(case: Case, images: int, settings: AutoencoderSettings) -> int:
    """Of the `complex` representation (equations 4 to 6), forward and backward."""
    rows, size, code = 2 * settings.bottleneck + 1, case.side**2, settings.bottleneck + 1
    projections = images * (case.inputs + case.outputs) * size * rows
    norms = images * (case.inputs + case.outputs) * size
    similarities = images * case.outputs * (rows + code * code)
    gram = -(-images // settings.batch_size) * code * code * (case.inputs + 1) * size
    return 2 * projections + norms + 3 * (similarities + gram)


def epoch_seconds(case: Case, spectra: Spectra, settings: AutoencoderSettings) -> float:
    """Median time between the ends of two epochs."""
    ends: list[float] = []
    settings = replace(settings, epochs=6, tolerance=0.0)
    train_autoencoder(untrained(case, settings), spectra, settings, report=lambda state: ends.append(time.perf_counter()))
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


def profiled(case: Case, spectra: Spectra, settings: AutoencoderSettings, most: int = 14) -> list[Row]:
    """Operations by the time they take themselves, of two epochs after a first one."""
    network = untrained(case, settings)
    train_autoencoder(network, spectra, replace(settings, epochs=1))
    with profile(activities=[ProfilerActivity.CPU]) as run:
        train_autoencoder(network, spectra, replace(settings, epochs=2))
    events = sorted(run.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {"layer": case.layer, "operation": event.key, "calls an epoch": event.count // 2}
        | {"ms an epoch": event.self_cpu_time_total / 2e3, "share %": 100 * event.self_cpu_time_total / total}
        for event in events[:most]
    ]


def floor_of(case: Case, images: int, settings: AutoencoderSettings, bandwidth: float, rate: float, epoch: float) -> Row:
    """One row: the two bounds, the epoch, and its ratio to the larger bound."""
    moved, multiplied = bytes_per_epoch(case, images, settings), multiplications_per_epoch(case, images, settings)
    bounds = {"memory": moved / bandwidth, "arithmetic": multiplied / rate}
    larger = max(bounds, key=lambda name: bounds[name])
    return {
        "layer": case.layer,
        "MB an epoch": moved / 1e6,
        "million products": multiplied / 1e6,
        "memory floor ms": 1e3 * bounds["memory"],
        "arithmetic floor ms": 1e3 * bounds["arithmetic"],
        "epoch ms": 1e3 * epoch,
        "bound by": larger,
        "epoch / floor": epoch / bounds[larger],
    }


def main(options: argparse.Namespace) -> None:
    """The floor of every layer and the profile of two."""
    cases, settings = vgg16_cases(), settings_of(options)
    bandwidth, rate = copy_bandwidth(16 if options.quick else 512), matmul_rate(256 if options.quick else 2048)
    floors, profiles = [], []
    for case in cases:
        say(case.layer)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spectra.safetensors"
            write_synthetic_spectra(path, case, options.images)
            spectra = open_synthetic_spectra(path)
            epoch = epoch_seconds(case, spectra, settings)
            floors.append(floor_of(case, options.images, settings, bandwidth, rate, epoch))
            if case.layer in PROFILED:
                profiles += profiled(case, spectra, settings)
    note = f"{options.images} images, complex, tanh bottleneck 8, batches of {settings.batch_size}"
    rates = f"; copy {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e9:.0f} billion multiply-adds a second"
    write_table("floor", floors, options, note + rates)
    write_table("floor_profile", profiles, options, note)


if __name__ == "__main__":
    main(parse(__doc__))
