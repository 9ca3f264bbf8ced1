"""How time and memory grow with the channels C = K and with the images N, at fixed 4x4 maps: fitted exponents.

Factorised: the first step of a fit and the scoring of all pairs, on spectra cached in float16 and memory-mapped; its peak holds
the spectra that it read. In the span: the basis of the inputs' span, ten passes in it, the rows written out again, and the
scoring, as the workflow does it for `complex`. Direct: one forward and backward of two images. Exponents are least squares
on logarithms, over all sizes and over the upper half of them, where fixed costs weigh less. A row that is there is not
measured again.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, open_synthetic_spectra, prepare_step, settings_of, untrained, write_synthetic_spectra
from benchmarks.common import Row, earlier_rows, is_there, parse, peak_memory, repeats_for, say, seconds, write_table
from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, KeptBlocks, fidelities
from scap.criterion.fitting import random_autoencoder, train_autoencoder
from scap.criterion.span import span_of

DIRECT_IMAGES, LIMIT = 2, 600 * 2**20
SPAN_EPOCHS = 10
NOTE = (
    "4x4 maps; factorised: one step of a fit and the scoring; in the span: basis, ten passes, scoring; "
    f"direct: one forward and backward of {DIRECT_IMAGES} images"
)


def prepare_scoring(path: Path, case: Case, settings: AutoencoderSettings) -> Callable[[], Any]:
    """One step and the scoring of a spectra file, ready to run."""
    network, spectra = untrained(case, settings), open_synthetic_spectra(path)

    def run() -> None:
        train_autoencoder(network, KeptBlocks(spectra, settings))
        fidelities(network, spectra, settings)

    return run


def prepare_span(path: Path, case: Case, settings: AutoencoderSettings) -> Callable[[], Any]:
    """The span, some passes in it and the scoring of a spectra file, ready to run."""
    settings, spectra = replace(settings, epochs=SPAN_EPOCHS, tolerance=0.0), open_synthetic_spectra(path)

    def run() -> None:
        span = span_of(spectra)
        network = random_autoencoder(span.spectra, settings, settings.bottleneck, "")
        rows = span.expand(train_autoencoder(network, KeptBlocks(span.spectra, settings)).rows.detach())
        fidelities(Autoencoder(rows, network.bias.detach(), settings.activation), spectra, settings)

    return run


PREPARE = {"factorised": prepare_scoring, "in the span": prepare_span}


def factorised(evaluation: str, case: Case, images: int, settings: AutoencoderSettings) -> Row:
    """Time and memory of the epochs and the scoring."""
    say(f"{evaluation}: C = K = {case.inputs}, N = {images}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spectra.safetensors"
        write_synthetic_spectra(path, case, images)
        cached = path.stat().st_size
        run = PREPARE[evaluation](path, case, settings)
        time = seconds({"run": run}, repeats_for(run))["run"]
        peak = peak_memory(PREPARE[evaluation], path, case, settings)
    return row(evaluation, case, images, time, peak) | {
        "cached spectra MB": cached / 1e6,
        "workspace MB": max(peak - cached, 0) / 1e6,
    }


def direct(case: Case, settings: AutoencoderSettings) -> Row:
    """Time and memory of a direct forward and backward."""
    say(f"direct: C = K = {case.inputs}")
    arguments = ("direct", case, DIRECT_IMAGES, case.outputs, settings)
    time = seconds({"run": prepare_step(*arguments)}, repeats=3)["run"]
    nothing = {"cached spectra MB": math.nan, "workspace MB": math.nan}
    return row("direct", case, DIRECT_IMAGES, time, peak_memory(prepare_step, *arguments)) | nothing


def row(evaluation: str, case: Case, images: int, time: float, peak: int) -> Row:
    """The columns that both have."""
    return {"evaluation": evaluation, "C = K": case.inputs, "N": images, "s": time, "peak MB": peak / 1e6}


def exponent(rows: list[Row], of: str, over: str) -> float:
    """Slope of log(of) against log(over), least squares; NaN where fewer than two sizes could be measured."""
    points = [(math.log(r[over]), math.log(r[of])) for r in rows if r[of] > 0]
    if len(points) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return covariance / sum((x - mean_x) ** 2 for x, _ in points)


def exponents(evaluation: str, rows: list[Row], over: str) -> list[Row]:
    """Exponents of time and memory over all sizes and over the upper half."""
    parts = {"all sizes": rows, "upper half": rows[len(rows) // 2 - (len(rows) < 4) :]}
    return [
        {"evaluation": evaluation, "over": over, "sizes": f"{part[0][over]} … {part[-1][over]} ({name})"}
        | {f"exponent of {of}": exponent(part, of, over) for of in ("s", "peak MB")}
        for name, part in parts.items()
        if len(part) > 1
    ]


def measure(evaluation: str, representation: str, size: int, images: int, options: argparse.Namespace, rows: list[Row]) -> Row:
    """The row of a size; it is measured unless it is there, and then the table is written."""
    key = {"representation": representation, "evaluation": evaluation, "C = K": size, "N": images}
    if not is_there(key, rows):
        settings, case = replace(settings_of(options, representation), epochs=1), Case("", size, size, 4)
        found = direct(case, settings) if evaluation == "direct" else factorised(evaluation, case, images, settings)
        rows.append({"representation": representation} | found)
        write_table("growth", rows, options, NOTE, show=False)
    return next(row for row in rows if is_there(key, [row]))


def main(options: argparse.Namespace) -> None:
    """Both sweeps of the factorised evaluation, and the direct one as far as it fits; what was stopped resumes."""
    sizes = counts = [64, 128, 256, 512, 1024, 2048, 4096]
    images, channels = 128, 512
    if options.quick:
        sizes, counts, images, channels = [8, 16, 32], [32, 64], 16, 16
    rows, fitted = earlier_rows("growth", options, NOTE), []
    for representation in ("complex",) if options.quick else ("complex", "power"):
        fitting = [size for size in sizes if Case("", size, size, 4).field(DIRECT_IMAGES) <= LIMIT]
        sweeps = [("direct", "C = K", [(size, DIRECT_IMAGES) for size in fitting])]
        for evaluation in ("factorised", "in the span") if representation == "complex" else ("factorised",):
            sweeps.append((evaluation, "C = K", [(size, images) for size in sizes]))
            sweeps.append((evaluation, "N", [(channels, count) for count in counts]))
        for evaluation, over, points in sweeps:
            found = [measure(evaluation, representation, *point, options, rows) for point in points]
            fitted += [{"representation": representation} | row for row in exponents(evaluation, found, over)]
    write_table("growth", rows, options, NOTE)
    write_table("growth_exponents", fitted, options, NOTE)


if __name__ == "__main__":
    main(parse(__doc__))
