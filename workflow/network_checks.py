"""Whether data sets and networks of a configuration fit themselves and each other: one message a mistake."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from scap.data.settings import FolderSettings
from scap.data.sources import FOLDER, SIZES
from scap.errors import ScapError
from scap.models.names import PRUNABLE, check_architecture, output_channels, own_function
from scap.settings import choose
from scap.training.settings import TrainingSettings
from workflow.yaml_files import ConfigurationError

REPEATED = re.compile(r"(.+?)\1{20,}$")  # Snakemake takes such a name for a path that grows without end
# What builds a network -> the names of weights that it brings, and how a message says it.
NAMED_WEIGHTS = {
    "own": ("own", "own, or "),
    "timm": ("DEFAULT", "DEFAULT, or "),
    "torchvision": ("[A-Z][A-Z0-9_]*", "DEFAULT, another name that it lists, or "),
}
GREY = ("digits", "fashion-mnist")  # sources whose images have one channel; others have three
Section = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """What is known of a data set before any job.

    `images`: training images; infinite where a folder is not counted yet. `side`: of an image, in pixels.
    """

    images: float
    side: int
    channels: int
    in_folder: bool


def folder_settings(entry: Section) -> dict[str, Any]:
    """All settings of a data set that is a folder; ScapError where they do not fit."""
    return asdict(FolderSettings(**{each.name: entry[each.name] for each in fields(FolderSettings) if each.name in entry}))


def check_data(name: str, entry: Section, images: int | None) -> Data:
    """What is known of a data set; ConfigurationError where its entry does not fit itself."""
    source, where = entry["source"], f"config: datasets.{name}"
    if source != "digits" and not entry.get("root"):
        files = "the images, with train/CLASS and val/CLASS" if source == FOLDER else "the official files"
        raise ConfigurationError(f"{where}: 'root' is missing; name the folder of {files}")
    _check_home(f"datasets.{name}.root", entry.get("root", ""))
    if source == FOLDER:
        try:
            side = folder_settings(entry)["size"]
        except ScapError as error:
            raise ConfigurationError(f"{where}: {str(error).removeprefix('dataset: ')}") from error
        return Data(math.inf if images is None else images, side, channels=3, in_folder=True)
    for each in fields(FolderSettings):
        if each.name in entry:
            raise ConfigurationError(f"{where}.{each.name}: is for 'source: folder'; {source} has images of one size")
    return Data(*SIZES[source], channels=1 if source in GREY else 3, in_folder=False)


def _check_home(path: str, name: str) -> None:
    if name.startswith("~"):
        problem = f"{name[:60]!r}: '~' would be a folder of this name, not your home"
        raise ConfigurationError(f"config: {path}: {problem}; write the whole path, or one from the project's folder")


def check_network(path: str, entry: Section, data: Data) -> None:
    """Raise ConfigurationError where the entry of a network, at `path`, does not fit itself or its data."""
    _check_layers(path, entry)
    if "baseline" not in entry and "weights" not in entry:
        raise ConfigurationError(f"config: {path}: give 'baseline', its training, or 'weights', trained ones, or both")
    if "weights" in entry:
        _check_weights(path, entry)
    for key, values in entry.get("normalisation", {}).items():
        if len(values) != data.channels:
            problem = f"{len(values)} numbers, but the images of {entry['dataset']} have {data.channels} channel(s)"
            raise ConfigurationError(f"config: {path}.normalisation.{key}: {problem}; give one for each")
    if entry.get("baseline", {}).get("distillation"):
        raise ConfigurationError(f"config: {path}.baseline.distillation: a baseline has no teacher; leave it out")
    if "none" in entry["finetuning"]:
        raise ConfigurationError(f"config: {path}.finetuning.none: this name stands for no training at all; choose another")
    left, name = data.images - entry["holdout"], entry["dataset"]
    if left < 1:
        raise ConfigurationError(f"config: {path}.holdout: {name} has {data.images} training images; leave some to train on")
    if entry.get("train_images", 1) > left:
        raise ConfigurationError(f"config: {path}.train_images: {name} has {left} left beside the holdout; give fewer")
    trainings = {"baseline": entry["baseline"]} if "baseline" in entry else {}
    trainings |= {f"finetuning.{name}": schedule for name, schedule in entry["finetuning"].items()}
    for key, training in trainings.items():
        _check_training(f"{path}.{key}", training, entry.get("train_images", left), data)
    for name, schedule in entry["finetuning"].items():
        _check_schedule(f"{path}.finetuning.{name}", schedule, entry["gpu"])


def _check_weights(path: str, entry: Section) -> None:
    weights, architecture = entry["weights"], entry["architecture"]
    if entry["width"] != 1:
        raise ConfigurationError(f"config: {path}.width: trained weights have their own widths; leave it out")
    if isinstance(weights, str):
        kind = "own" if own_function(architecture) else architecture.partition(":")[0]
        pattern, offered = NAMED_WEIGHTS.get(kind, ("(?!)", ""))
        if not re.fullmatch(pattern, weights):
            problem = f"{weights[:60]!r} is nothing that {architecture} offers; give {offered}a checkpoint, {{file: ...}}"
            raise ConfigurationError(f"config: {path}.weights: {problem}")
        return
    _check_home(f"{path}.weights.file", weights["file"])
    if "baseline" not in entry and weights.get("leave_out"):
        problem = f"{weights['leave_out'][0]!r} would stay untrained; give 'baseline', which trains it"
        raise ConfigurationError(f"config: {path}.weights.leave_out: {problem}")


def _check_schedule(path: str, schedule: Section, gpu: int) -> None:
    if schedule["rounds"] > 1 and schedule["start"] == "scratch":
        problem = f"{schedule['rounds']} rounds prune by what training has made of the weights; leave out 'start: scratch'"
        raise ConfigurationError(f"config: {path}.rounds: {problem}, or the rounds")
    if schedule["batch_size"] % max(1, gpu):
        problem = f"{schedule['batch_size']} does not divide by the {gpu} processes of 'gpu: {gpu}'; give a multiple"
        raise ConfigurationError(f"config: {path}.batch_size: {problem}")


def _check_layers(path: str, entry: Section) -> None:
    architecture, layers = entry["architecture"], entry.get("layers")
    try:
        check_architecture(architecture)
    except (ScapError, OSError, ValueError) as error:  # a path that no file can have, too
        raise ConfigurationError(f"config: {path}.{error}".replace("\n", "\\n")) from error
    if layers is None and architecture not in PRUNABLE and not entry["coupled"]:
        raise ConfigurationError(f"config: {path}.layers: is missing; name the convolutions of {architecture} to prune")
    for layer in layers or []:
        if not entry["coupled"]:  # any layer may be what a group is named by, but for a trace nobody knows
            check_known(layer, PRUNABLE.get(architecture, layers), f"{path}.layers", f"the layers of {architecture}")
        if not re.fullmatch(r"\w+(\.\w+)*", layer) or REPEATED.search(layer):
            raise ConfigurationError(
                f"config: {path}.layers: {layer!r} cannot be a layer; give its path, such as 'layer1.0.conv1'"
            )
    if layers == []:
        raise ConfigurationError(f"config: {path}.layers: is empty; name one layer at least, or leave it out for all")
    if architecture in PRUNABLE:
        widest = max(channels_of(entry).values())
        for key in ("multiple", "min_channels"):
            if entry[key] > widest:
                problem = f"no layer has more than {widest} channels: nothing could be pruned; give less"
                raise ConfigurationError(f"config: {path}.{key}: {entry[key]} is too large, as {problem}")


def channels_of(network: Section) -> dict[str, int]:
    """Output channels of the layers that are pruned, of a built-in architecture."""
    known = output_channels(network["architecture"], network["width"])
    return {layer: known[layer] for layer in network.get("layers", known) if layer in known} or known


def _check_training(path: str, training: Section, images: float, data: Data) -> None:
    size = data.side
    if training["crop"] and data.in_folder:
        raise ConfigurationError(f"config: {path}.crop: images of a folder are always cropped at random; leave it out")
    for setting, limit in {"batch_size": images, "crop": size - 1, "cutout": size}.items():
        if training[setting] > limit:
            raise ConfigurationError(f"config: {path}.{setting}: {training[setting]} is more than {limit}; give less")
    for side in training["small_images"]:
        if side > size:
            raise ConfigurationError(
                f"config: {path}.small_images: {side} is more than the {size} pixels of an image; give less"
            )
    try:
        TrainingSettings(**{key: value for key, value in training.items() if key not in ("start", "rounds")})
    except ScapError as error:
        raise ConfigurationError(f"config: {path}: {str(error).removeprefix('training: ')}") from error


def check_known(name: str, names: Iterable[str], path: str, where: str) -> None:
    """Raise ConfigurationError where a name is none of `names`."""
    if name not in names:
        raise ConfigurationError(f"config: {path}: {str(name)[:60]!r} is not in {where}; {choose(name, names)}")
