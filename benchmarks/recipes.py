"""Training recipes: held-out accuracy against the core-seconds that it costs, for the old recipe, the fast one and its parts.

VGG16 at quarter width on 45,000 training images; 5,000 others, split off the training set, judge. The test images are not
looked at. A row is added to recipes.csv as soon as its training has ended, and a recipe that has its row for the seed is not
trained again: what was stopped resumes. Core-seconds are the processor time of the training, without measurements.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks.common import RESULTS, Row, machine, say
from scap.data.datasets import Dataset, Images, load_dataset, read_source
from scap.models.build import build_network
from scap.tensors import save_tensors
from scap.training.loop import evaluate, reset_network, train
from scap.training.settings import TrainingSettings

HOLDOUT = 5000
PLAIN = {"epochs": 12, "batch_size": 128, "learning_rate": 0.1, "crop": 4, "flip": True, "label_smoothing": 0.1}
AUGMENTED = {"crop": 2, "padding": "reflected", "flip": True, "alternating_flip": True, "label_smoothing": 0.1}
TURNED = {"batch_size": 256, "learning_rate": 0.4, "muon": 0.05}
FAST = {"epochs": 8, **TURNED, **AUGMENTED, "small_images": [16, 16, 16, 24, 24]}  # as in config/experiments/quarter.yaml
SHORT = {**FAST, "epochs": 4, "small_images": [16, 16, 24]}  # in which the parts are compared
MORE = {"epochs": 18, "batch_size": 512, "crop": 4, "cutout": 8, "small_images": [16, 16, 16, 16, 16, 24, 24, 24, 24]}
LONG = {**FAST, **MORE, "precision": "bfloat16"}  # full-width networks on a CPU take half of its `muon`
RECIPES: dict[str, dict] = {
    "fast": FAST,
    "short": SHORT,
    "short, SGD": {**SHORT, "batch_size": 128, "learning_rate": 0.2, "muon": 0.0},
    "short, whole images": {**SHORT, "epochs": 2, "small_images": []},
    "short, flips by chance": {**SHORT, "alternating_flip": False},
    "short, shifts into black": {**SHORT, "padding": "black"},
    "short, shifts by 4 into black": {**SHORT, "crop": 4, "padding": "black"},
    "short, no label smoothing": {**SHORT, "label_smoothing": 0.0},
    "short, label smoothing 0.2": {**SHORT, "label_smoothing": 0.2},
    "short, averaged weights": {**SHORT, "ema": 0.98},
    "short, biases at 8 times the rate": {**SHORT, "bias_rate": 8.0},
    "short, turns of 0.03": {**SHORT, "muon": 0.03},
    "fast, 6 epochs": {**FAST, "epochs": 6, "small_images": [16, 16, 24, 24]},
    "fast, 7 epochs": {**FAST, "epochs": 7, "small_images": [16, 16, 16, 24, 24, 24]},
    "fast, bfloat16": {**FAST, "precision": "bfloat16"},
    "long": LONG,
    "long, turns of 0.025": {**LONG, "muon": 0.025},
    "long, turns of 0.025, 21 epochs": {**LONG, "muon": 0.025, "epochs": 21},  # as in config/experiments/full.yaml
    "plain, 12 epochs": PLAIN,
    "plain, 12 epochs, bfloat16": {**PLAIN, "precision": "bfloat16"},
}


def changed(settings: TrainingSettings) -> str:
    """The settings that are not at their defaults, as JSON."""
    defaults = asdict(TrainingSettings(settings.epochs, settings.batch_size, settings.learning_rate))
    needed = ("epochs", "batch_size", "learning_rate")
    return json.dumps({key: value for key, value in asdict(settings).items() if key in needed or value != defaults[key]})


def measure(recipe: str, dataset: Dataset, width: float, seed: int) -> Row:
    """One training of one recipe: its row of the table."""
    settings = TrainingSettings(**RECIPES[recipe])
    network = build_network("vgg16", width=width, in_channels=dataset.train.images.shape[1])
    reset_network(network, seed)
    start = time.process_time()
    history = train(network, without_holdout(dataset), settings, seed=seed)
    core_seconds = time.process_time() - start
    return {
        "recipe": recipe,
        "seed": seed,
        "width": width,
        "epochs": settings.epochs,
        "core_seconds": round(core_seconds, 1),
        "train_top1": history[-1]["train_top1"],
        "holdout_top1": evaluate(network, dataset.holdout, dataset.mean, dataset.std),
        "settings": changed(settings),
        "note": "",
        "machine": machine(),
    }


def without_holdout(dataset: Dataset) -> Dataset:
    """The same without held-out images, so that none are measured while a training is timed."""
    return replace(dataset, holdout=Images(dataset.holdout.images[:0], dataset.holdout.labels[:0]))


def stored(path: Path) -> list[Row]:
    """The rows of earlier runs."""
    return pd.read_csv(path, keep_default_na=False).to_dict("records") if path.exists() else []


def store(rows: list[Row], folder: Path) -> None:
    """All rows as recipes.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "recipes.csv", index=False, float_format="%.6g")


def read(folder: str, images: int | None) -> Dataset:
    """CIFAR-10 from `folder` with the project's own split, or its first `images` alone."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "data.safetensors"
        save_tensors(path, read_source("cifar10", Path(folder)))
        return load_dataset(path, HOLDOUT, images)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="data", help="folder that holds cifar-10-batches-py (default: data)")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES), help="default: all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1, help="default: 1, as more threads waste some of their time waiting")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="one epoch of 1,000 images: does it work? Goes to results/quick")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    """Train what the table does not have yet."""
    torch.set_num_threads(options.threads)
    options.results = folder = options.results / "quick" if options.quick else options.results
    dataset = read(options.data, 1000 if options.quick else None)
    rows = stored(folder / "recipes.csv")
    for seed in options.seeds:
        for recipe in options.recipes:
            if (recipe, seed, options.width) not in {(row["recipe"], row["seed"], row["width"]) for row in rows}:
                rows.append(measure(recipe, dataset, options.width, seed))
                say(f"{recipe}, seed {seed}: {rows[-1]['holdout_top1']:.2f} %, {rows[-1]['core_seconds']:.0f} core-seconds")
                store(rows, folder)


if __name__ == "__main__":
    main(parse())
