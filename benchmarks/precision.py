"""What the precision of the cached spectra changes: fidelities, ranks and decisions, against float32.

float16 is what the workflow writes (activations and spectra). bfloat16 rounds float32 spectra. As a scale: float32 spectra of
as many other calibration images.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cases import settings_of
from benchmarks.common import Row, calibration, parse, say, write_table
from scap.criterion.activations import record_activations
from scap.criterion.autoencoder import AutoencoderSettings, fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.fusion import CriterionSettings, Values, importance
from scap.criterion.spectra import Spectra, open_spectra, write_spectra
from scap.criterion.terms import l1
from scap.data.datasets import normalise
from scap.models.layers import conv_layers
from scap.pruning.surgery import prunable_layers

THRESHOLD = 0.6
FULL, SCALE = "float32", "other images"
VARIANTS = (("complex", "nonlinear"), ("complex", "linear"), ("power", "nonlinear"))


def ranks(values: Values) -> Values:
    """Rank of each value, from 0."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)


def spearman(values: Values, reference: Values) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(values), ranks(reference))[0, 1])


def record(network: nn.Module, images: Tensor, others: Tensor, layers: list[str], folder: Path) -> dict[str, Path]:
    """Activation files: of the images in both precisions, and of other images."""
    paths = {}
    for name, recorded, dtype in (
        (FULL, images, torch.float32),
        ("float16", images, torch.float16),
        (SCALE, others, torch.float32),
    ):
        paths[name] = folder / f"{name}.safetensors"
        record_activations(network, recorded, layers, paths[name], dtype=dtype)
    return paths


def caches(paths: dict[str, Path], layer: str, folder: Path) -> dict[str, Spectra]:
    """A layer's spectra in the three precisions, and of other images."""
    found = {}
    for name, activations in paths.items():
        path = folder / f"spectra-{name}.safetensors"
        write_spectra(activations, layer, path, dtype=torch.float16 if name == "float16" else torch.float32)
        found[name] = open_spectra(path, layer)
    full = found[FULL]
    found["bfloat16"] = Spectra(full.inputs.bfloat16(), full.outputs.bfloat16(), full.layout)
    return found


def fidelity(spectra: Spectra, settings: AutoencoderSettings, layer: str) -> Values:
    """Fitted and scored."""
    return fidelities(fit_autoencoder(spectra, settings, layer=layer), spectra, settings).numpy()


def compared(changed: Values, reference: Values, norms: Values) -> Row:
    """How two fidelities of one layer differ."""
    kept = [importance({"fidelity": f, "l1": norms}, CriterionSettings()) >= THRESHOLD for f in (changed, reference)]
    return {
        "largest change of fidelity": float(np.abs(changed - reference).max()),
        "spread of fidelity": float(np.ptp(reference)),
        "rank correlation": spearman(changed, reference),
        "largest change of rank": int(np.abs(ranks(changed) - ranks(reference)).max()),
        "channels": len(norms),
        "decisions changed %": 100 * float((kept[0] != kept[1]).mean()),
    }


def rows_of(spectra: dict[str, Spectra], settings: AutoencoderSettings, layer: str, norms: Values) -> Iterator[Row]:
    """One layer and one kind of autoencoder: each cache, and other images, against float32."""
    reference = fidelity(spectra[FULL], settings, layer)
    first = {"representation": settings.representation, "autoencoder": settings.kind, "layer": layer}
    for changed in ("float16", "bfloat16", SCALE):
        yield first | {"changed": changed} | compared(fidelity(spectra[changed], settings, layer), reference, norms)


def summary(rows: list[Row]) -> list[Row]:
    """Over all layers: the worst of each, and the share of all channels with another decision."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row["representation"], row["autoencoder"], row["changed"]), []).append(row)
    table = []
    for (representation, kind, changed), part in found.items():
        channels = sum(r["channels"] for r in part)
        table.append(
            {
                "representation": representation,
                "autoencoder": kind,
                "changed": changed,
                "largest change of fidelity": max(r["largest change of fidelity"] for r in part),
                "lowest rank correlation": min(r["rank correlation"] for r in part),
                "decisions changed %": sum(r["decisions changed %"] * r["channels"] for r in part) / channels,
            }
        )
    return table


def main(options: argparse.Namespace) -> None:
    """All layers, all variants."""
    network, images, data, what = calibration(options)
    others = normalise(data.train.images[len(images) : 2 * len(images)], data.mean, data.std, "cpu")
    layers, rows = prunable_layers(network, images[:1]), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = record(network, images, others, layers, folder)
        for layer in layers:
            say(layer)
            spectra = caches(paths, layer, folder)
            norms = l1(conv_layers(network)[layer].weight.detach().numpy())
            for variant in VARIANTS:
                rows += rows_of(spectra, settings_of(options, *variant), layer, norms)
    note = f"{what}; against float32 caches; decisions at a threshold of {THRESHOLD}"
    write_table("precision", summary(rows), options, note)
    write_table("precision_layers", rows, options, note)


if __name__ == "__main__":
    main(parse(__doc__))
