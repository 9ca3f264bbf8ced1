"""Direct against factorised evaluation: time, peak memory, largest differences, one forward and backward per layer.

Both start from the same activations of the same batch of pairs. `spectra ratio` is the time ratio to a factorised step
that starts from cached spectra, as every training step but the first does. Where the direct evaluation's field does not
fit, it is measured on a part of the pairs and on half of this part, and the line through both is extrapolated.
"""

import argparse
import copy
from functools import partial

from benchmarks.cases import (
    RESNET_CASES,
    Case,
    activations,
    cached_step,
    direct_step,
    factorised_step,
    half_of,
    largest_difference,
    part_that_fits,
    prepare_step,
    settings_of,
    to_whole,
    trained_a_little,
    vgg16_cases,
)
from benchmarks.common import Row, parse, peak_memory, repeats_for, say, seconds, write_table
from scap.criterion.autoencoder import AutoencoderSettings
from scap.criterion.spectra import spectra_of

LIMIT = 600 * 2**20  # bytes of the field; the direct evaluation's peak is about six times that


def times_of(case: Case, settings: AutoencoderSettings, images: int, outputs: int) -> Row:
    """Seconds of the three steps on the whole batch (direct: extrapolated from the part), and the largest differences."""
    batch = settings.batch_size
    x, y = activations(case, batch)
    network = trained_a_little(x, y, settings)
    spectra = spectra_of(x, y)
    x_part, y_part = x[:images], y[:images, :outputs]
    fewer, narrower = half_of(images, outputs)
    quick = {
        "factorised": partial(factorised_step, network, x, y, settings),
        "cached": partial(cached_step, network, spectra, settings),
    }
    slow = {"part": partial(direct_step, network, x_part, y_part, settings)}
    share = images * outputs / (batch * case.outputs)
    if share < 1:
        slow["half"] = partial(direct_step, network, x[:fewer], y[:fewer, :narrower], settings)
    times = seconds(quick | slow, repeats=3)
    times |= seconds(quick, repeats_for(quick["factorised"]))  # three runs of a millisecond say little
    times["direct"] = to_whole(times["part"], times["half"], share) if share < 1 else times["part"]
    expected = [value.clone() for value in direct_step(network, x_part, y_part, settings)]
    result = factorised_step(network, x_part, y_part, settings)
    result = [value.clone() for value in result]
    exact = factorised_step(copy.deepcopy(network).double(), x_part.double(), y_part.double(), settings)
    names = ("fidelity", "loss", "gradient")
    differences = {n: largest_difference(*pair) for n, *pair in zip(names, result, expected, strict=True)}
    errors = {n: max(map(largest_difference, v, exact)) for n, v in (("factorised error", result), ("direct error", expected))}
    return times | differences | errors


def memory_of(case: Case, settings: AutoencoderSettings, images: int, outputs: int) -> tuple[float, float]:
    """Peak bytes of the direct (extrapolated alike) and of the factorised step on the whole batch."""
    batch = settings.batch_size
    factorised = peak_memory(prepare_step, "factorised", case, batch, case.outputs, settings)
    direct = peak_memory(prepare_step, "direct", case, images, outputs, settings)
    share = images * outputs / (batch * case.outputs)
    if share == 1:
        return direct, factorised
    half = peak_memory(prepare_step, "direct", case, *half_of(images, outputs), settings)
    return to_whole(direct, half, share), factorised


def compare(case: Case, settings: AutoencoderSettings, limit: int) -> Row:
    """One row of the table."""
    say(f"{settings.representation}: {case.layer}")
    images, outputs = part_that_fits(case, settings.batch_size, limit)
    times = times_of(case, settings, images, outputs)
    direct, factorised = memory_of(case, settings, images, outputs)
    whole = images * outputs == settings.batch_size * case.outputs
    return {
        "representation": settings.representation,
        "layer": case.layer,
        "C": case.inputs,
        "K": case.outputs,
        "map": case.side,
        "direct s": times["direct"],
        "factorised s": times["factorised"],
        "time ratio": times["direct"] / times["factorised"],
        "spectra ratio": times["direct"] / times["cached"],
        "direct MB": direct / 1e6,
        "factorised MB": factorised / 1e6,
        "memory ratio": direct / max(factorised, 1e5),  # below a tenth of a megabyte the measurement says nothing
        "fidelity difference": times["fidelity"],
        "loss difference": times["loss"],
        "gradient difference": times["gradient"],
        "factorised error": times["factorised error"],
        "direct error": times["direct error"],
        "direct is": "measured" if whole else f"extrapolated from {images * outputs} pairs",
    }


def main(options: argparse.Namespace) -> None:
    """All layers, or with --quick two small ones (one of them extrapolated)."""
    cases, limit = vgg16_cases() + RESNET_CASES, LIMIT
    if options.quick:
        cases, limit = [Case("small", 8, 16, 8), Case("part", 32, 32, 4)], 2 * 2**20
    rows = [compare(case, settings_of(options, r), limit) for r in ("complex", "power") for case in cases]
    note = f"One forward and backward of {settings_of(options).batch_size} images times K channels, tanh bottleneck 8, float32"
    write_table("direct_vs_factorised", rows, options, note + "; differences relative to the largest value")


if __name__ == "__main__":
    main(parse(__doc__))
