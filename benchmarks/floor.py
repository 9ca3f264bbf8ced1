"""How far one pass of the fit is from what the machine allows, per layer of VGG16, and where the rest goes.

The pass (`epoch`) is that of the workflow: outputs as cached, inputs in their span (docs/method.md, section 4.4). The floor is
the larger of two times. Bytes that must move: these spectra, parameters and gradient once, and the earlier steps and gradients
that L-BFGS keeps, over the bandwidth of a large copy (read and write both counted). Multiplications: the
projections of both parts, forward and for the gradient of the rows, and the similarities, over the rate of a large float32
matrix product. Both rates are measured in the same run.
"""

import argparse
import math
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
    vgg16_cases,
    write_synthetic_spectra,
)
from benchmarks.common import Row, parse, say, seconds, write_table
from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, KeptBlocks, row_shape
from scap.criterion.fitting import ROUND, Objective, random_autoencoder, train_autoencoder
from scap.criterion.span import span_of, worthwhile
from scap.criterion.spectra import Spectra

PROFILED = ("conv1_2", "conv5_1, conv5_2, conv5_3")
KEPT = 2 * ROUND + 2  # vectors of the size of the parameters: steps and gradients, those of now among them


def copy_bandwidth(megabytes: int) -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds({"copy": lambda: target.copy_(source)}, repeats=7)["copy"]


def matmul_rate(size: int) -> float:
    """Multiplications (with their additions) per second of a float32 matrix product."""
    matrix, product = torch.rand(size, size), torch.empty(size, size)
    return size**3 / seconds({"matmul": lambda: torch.matmul(matrix, matrix, out=product)}, repeats=7)["matmul"]


def bytes_per_epoch(spectra: Spectra, settings: AutoencoderSettings) -> int:
    """What must move between memory and processor."""
    cached = sum(part.numel() * part.element_size() for part in (spectra.inputs, spectra.outputs))
    weights = (2 * settings.bottleneck + 1) * math.prod(shape_of(spectra, settings))
    return cached + KEPT * 4 * weights


def multiplications_per_epoch(spectra: Spectra, settings: AutoencoderSettings) -> int:
    """Of the `complex` representation (equations 4 to 6), forward and backward."""
    rows, code = 2 * settings.bottleneck + 1, settings.bottleneck + 1
    numbers = spectra.inputs.numel() + spectra.outputs.numel()
    similarities = spectra.images * spectra.channels * (rows + code * code)
    gram = code * code * math.prod(shape_of(spectra, settings))
    return 2 * numbers * rows + numbers + 3 * (similarities + gram)


def shape_of(spectra: Spectra, settings: AutoencoderSettings) -> tuple[int, int]:
    """Shape of one row of the autoencoder."""
    return row_shape(spectra.inputs.shape[1], spectra.layout, settings.representation)


def fresh(spectra: Spectra, settings: AutoencoderSettings) -> Autoencoder:
    """A random autoencoder for these spectra."""
    return random_autoencoder(spectra, settings, settings.bottleneck, "")


def epoch_seconds(spectra: Spectra, settings: AutoencoderSettings) -> float:
    """Median time between the ends of two passes."""
    ends: list[float] = []
    settings = replace(settings, epochs=10, tolerance=0.0)
    train_autoencoder(
        fresh(spectra, settings), KeptBlocks(spectra, settings), report=lambda state: ends.append(time.perf_counter())
    )
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


def profiled(case: Case, spectra: Spectra, settings: AutoencoderSettings, most: int = 14) -> list[Row]:
    """Operations by the time they take themselves, of two passes after a first one."""
    objective = Objective(fresh(spectra, settings), KeptBlocks(spectra, settings))
    objective.evaluate()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        objective.evaluate()
        objective.evaluate()
    events = sorted(run.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {"layer": case.layer, "operation": event.key, "calls an epoch": event.count // 2}
        | {"ms an epoch": event.self_cpu_time_total / 2e3, "share %": 100 * event.self_cpu_time_total / total}
        for event in events[:most]
    ]


def floor_of(case: Case, spectra: Spectra, settings: AutoencoderSettings, bandwidth: float, rate: float, epoch: float) -> Row:
    """One row: the two bounds, the epoch, and its ratio to the larger bound."""
    moved, multiplied = bytes_per_epoch(spectra, settings), multiplications_per_epoch(spectra, settings)
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
            cached = open_synthetic_spectra(path)
            spectra = span_of(cached).spectra if worthwhile(cached) else cached
            epoch = epoch_seconds(spectra, settings)
            floors.append(floor_of(case, spectra, settings, bandwidth, rate, epoch))
            if case.layer in PROFILED:
                profiles += profiled(case, spectra, settings)
    note = f"{options.images} images, complex, tanh bottleneck 8, batches of {settings.batch_size}"
    rates = f"; copy {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e9:.0f} billion multiply-adds a second"
    write_table("floor", floors, options, note + rates)
    write_table("floor_profile", profiles, options, note)


if __name__ == "__main__":
    main(parse(__doc__))
