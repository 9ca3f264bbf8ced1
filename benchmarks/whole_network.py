"""A whole VGG16 from images to its score table, step by step, against one training epoch and the direct evaluation.

The epoch is the workflow's own training (scap.training.loop.train) on a few batches of 128, before and after the scoring,
times 50,000 images. The direct evaluation is projected: its seconds per pair, measured on a part of one batch per layer,
times all pairs and the epochs that the factorised training took. Its own start and scoring are left out, in its favour.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pandas  # noqa: F401  (imported by the first table that is written; imports are not part of the times)
from torch import Tensor, nn

from benchmarks.cases import Case, direct_seconds_per_pair, settings_of
from benchmarks.common import Row, calibration, parse, say, write_table
from scap.criterion.activations import record_activations
from scap.criterion.autoencoder import AutoencoderSettings, fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.fusion import CriterionSettings, Values, fuse
from scap.criterion.spectra import open_spectra, write_spectra
from scap.criterion.terms import l1
from scap.data.datasets import Dataset, Images
from scap.models.layers import conv_layers
from scap.pruning.surgery import prunable_layers
from scap.training.loop import train
from scap.training.settings import TrainingSettings

EPOCH_IMAGES = 50_000
VARIANTS = (("complex", "nonlinear"), ("complex", "linear"), ("power", "nonlinear"), ("power", "linear"))
STEPS = ("activations", "spectra", "autoencoders", "fidelities", "fusion")


class Stopwatch:
    """Seconds per step, summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, step: str, function, *arguments, **keywords):
        """function(...), its time added to `step`."""
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        self.seconds[step] += time.perf_counter() - start
        return result


def prepare(network: nn.Module, images: Tensor, folder: Path, watch: Stopwatch) -> list[str]:
    """Activations and spectra, which all variants share; the layers' names."""
    layers = watch.time("activations", prunable_layers, network, images[:1])
    activations = folder / "activations.safetensors"
    watch.time("activations", record_activations, network, images, layers, activations)
    for layer in layers:
        watch.time("spectra", write_spectra, activations, layer, folder / f"{layer}.safetensors")
    return layers


def score(
    network: nn.Module, layers: list[str], folder: Path, settings: AutoencoderSettings, watch: Stopwatch
) -> dict[str, list[float]]:
    """Autoencoders, fidelities and the fused score table; the training losses per layer."""
    losses: dict[str, list[float]] = {layer: [] for layer in layers}
    faithful: dict[str, Values] = {}
    for layer in layers:

        def note(state: dict[str, float], layer: str = layer) -> None:
            losses[layer] += [state["loss"]] if "loss" in state else []

        spectra = watch.time("autoencoders", open_spectra, folder / f"{layer}.safetensors", layer)
        fitted = watch.time("autoencoders", fit_autoencoder, spectra, settings, layer=layer, report=note)
        faithful[layer] = watch.time("fidelities", fidelities, fitted, spectra, settings).numpy()
    watch.time("fusion", fuse_default, network, faithful)
    return losses


def fuse_default(network: nn.Module, faithful: dict[str, Values]) -> None:
    """The score table with the default fusion."""
    convolutions = conv_layers(network)
    norms = {layer: l1(convolutions[layer].weight.detach().numpy()) for layer in faithful}
    fuse({"fidelity": faithful, "l1": norms}, list(faithful), CriterionSettings())


def seconds_per_training_image(network: nn.Module, data: Dataset, batches: int) -> float:
    """Of the second of two epochs over a few batches: crop, mirror, forward, backward, SGD."""
    settings = TrainingSettings(epochs=2, batch_size=128, learning_rate=0.01, crop=4, flip=True)
    chosen = Images(data.train.images[: 128 * batches], data.train.labels[: 128 * batches])
    nothing = Images(data.train.images[:0], data.train.labels[:0])
    part = Dataset(chosen, nothing, nothing, data.mean, data.std, data.classes)
    history = train(copy.deepcopy(network), part, settings, seed=0)
    return history[-1]["seconds"] / (128 * batches)


def projected_direct(
    network: nn.Module, folder: Path, losses: dict[str, list[float]], settings: AutoencoderSettings, limit: int
) -> float:
    """Seconds of the direct evaluation for all epochs of all layers, from a measured part."""
    total, known = 0.0, {}
    for layer, epochs in losses.items():
        conv, spectra = conv_layers(network)[layer], open_spectra(folder / f"{layer}.safetensors", layer)
        shape = (conv.in_channels, conv.out_channels, spectra.layout.height)
        if shape not in known:
            known[shape] = direct_seconds_per_pair(Case(layer, *shape), settings, limit)
        total += known[shape] * spectra.images * conv.out_channels * len(epochs)
    return total


def row_of(settings: AutoencoderSettings, watch: Stopwatch, shared: Stopwatch, epoch: float) -> Row:
    """Seconds per step and in all, and the share of one training epoch."""
    times = {step: watch.seconds[step] + shared.seconds[step] for step in STEPS}
    total = sum(times.values())
    row: Row = {"representation": settings.representation, "autoencoder": settings.kind}
    row |= {f"{step} s": value for step, value in times.items()}
    return row | {"total s": total, "training epoch s": epoch, "share of an epoch %": 100 * total / epoch}


def main(options: argparse.Namespace) -> None:
    """Score with every variant, train before and after, and project the direct evaluation."""
    network, images, data, what = calibration(options)
    batches, limit = (1, 2**20) if options.quick else (4, 256 * 2**20)
    per_image = [seconds_per_training_image(network, data, batches)]
    shared, watches, projected, epochs = Stopwatch(), {}, {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layers = prepare(network, images, folder, shared)
        for variant in VARIANTS:
            say(" ".join(variant))
            settings, watches[variant] = settings_of(options, *variant), Stopwatch()
            losses = score(network, layers, folder, settings, watches[variant])
            if settings.kind == "nonlinear":
                projected[variant] = projected_direct(network, folder, losses, settings, limit)
                epochs += [
                    {"representation": variant[0], "layer": layer, "epochs": len(values), "loss": values[-1]}
                    for layer, values in losses.items()
                ]
    per_image.append(seconds_per_training_image(network, data, batches))
    epoch = statistics.median(per_image) * EPOCH_IMAGES
    rows = []
    for variant, watch in watches.items():
        row = row_of(settings_of(options, *variant), watch, shared, epoch)
        direct = projected.get(variant, float("nan"))
        rows.append(row | {"direct, projected h": direct / 3600, "direct / factorised": direct / row["total s"]})
    spread = (
        f"epoch measured on {batches} batches before and after ({', '.join(f'{1e3 * p:.1f}' for p in per_image)} ms an image)"
    )
    write_table("whole_network", rows, options, f"{what}; {spread}; direct: extrapolated from a measured part")
    write_table("whole_network_epochs", epochs, options, what)


if __name__ == "__main__":
    main(parse(__doc__))
