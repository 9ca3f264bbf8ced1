"""Names of a configuration that refer to nothing, and entries that do not fit together: one message a mistake."""

import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from scap.criterion.settings import CriterionSettings
from scap.criterion.terms import needs
from scap.data.sources import SIZES
from scap.errors import ScapError
from scap.models.names import PRUNABLE, check_architecture, output_channels
from scap.settings import choose
from scap.training.settings import TrainingSettings
from workflow.yaml_files import ConfigurationError

RULES = Path(__file__).with_name("rules")
RULE = r"^(?:use rule \w+ as|rule) (\w+)"
REPEATED = re.compile(r"(.+?)\1{20,}$")  # Snakemake takes such a name for a path that grows without end
Section = dict[str, Any]


def check_references(config: Section) -> None:
    """Raise ConfigurationError where a name refers to nothing, or entries do not fit together."""
    _check_names(config)
    for name, entry in config["datasets"].items():
        if entry["source"] != "digits" and not entry.get("root"):
            raise ConfigurationError(f"config: datasets.{name}: 'root' is missing; name the folder of the official files")
    for name, entry in config["networks"].items():
        _known(entry["dataset"], config["datasets"], f"networks.{name}.dataset", "datasets")
        _check_network(f"networks.{name}", entry, config["datasets"][entry["dataset"]]["source"])
    for name, entry in config["criteria"].items():
        _check_criterion(f"criteria.{name}", name, entry)
    if config["compensations"].get("none", {"how": "none"})["how"] != "none":
        raise ConfigurationError("config: compensations.none.how: this name stands for no compensation; choose another name")
    for name, comparison in config["comparisons"].items():
        for index, grid in enumerate(comparison["runs"]):
            _check_grid(f"comparisons.{name}.runs.{index}", grid, config)
        _check_results(f"comparisons.{name}", comparison, config)
    _check_targets(config)


def _check_names(config: Section) -> None:
    names = [(section, name) for section in config for name in config[section]]
    names += [
        (f"networks.{name}.finetuning", other) for name, entry in config["networks"].items() for other in entry["finetuning"]
    ]
    for section, name in names:
        if REPEATED.search(name):
            raise ConfigurationError(f"config: {section}: the name {name!r} repeats itself; choose another")


def _check_targets(config: Section) -> None:
    if "all" not in config["targets"]:
        raise ConfigurationError("config: targets: 'all' is missing; it is what `snakemake` without a target makes")
    rules = {name for path in RULES.glob("*.smk") for name in re.findall(RULE, path.read_text(), re.MULTILINE)}
    for name, members in config["targets"].items():
        if name in rules:
            raise ConfigurationError(f"config: targets.{name}: a rule has this name; choose another")
        if not members:
            raise ConfigurationError(f"config: targets.{name}: names no comparison; give one, or leave the target out")
        for member in members:
            _known(member, config["comparisons"], f"targets.{name}", "comparisons")


def _check_network(path: str, entry: Section, source: str) -> None:
    _check_layers(path, entry)
    if ("baseline" in entry) == ("weights" in entry):
        raise ConfigurationError(f"config: {path}: give either 'baseline', its training, or 'weights', a checkpoint")
    if "weights" in entry and entry["width"] != 1:
        raise ConfigurationError(f"config: {path}.width: a checkpoint has its own widths; leave it out")
    if entry.get("baseline", {}).get("distillation"):
        raise ConfigurationError(f"config: {path}.baseline.distillation: a baseline has no teacher; leave it out")
    if "none" in entry["finetuning"]:
        raise ConfigurationError(f"config: {path}.finetuning.none: this name stands for no training at all; choose another")
    available, size = SIZES[source]
    left = available - entry["holdout"]
    if left < 1:
        raise ConfigurationError(f"config: {path}.holdout: {source} has {available} training images; leave some to train on")
    if entry.get("train_images", 1) > left:
        raise ConfigurationError(f"config: {path}.train_images: {source} has {left} left beside the holdout; give fewer")
    trainings = {"baseline": entry["baseline"]} if "baseline" in entry else {}
    trainings |= {f"finetuning.{name}": schedule for name, schedule in entry["finetuning"].items()}
    for key, training in trainings.items():
        _check_training(f"{path}.{key}", training, entry.get("train_images", left), size)
    for name, schedule in entry["finetuning"].items():
        _check_schedule(f"{path}.finetuning.{name}", schedule, entry["gpu"])


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
            _known(layer, PRUNABLE.get(architecture, layers), f"{path}.layers", f"the layers of {architecture}")
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


def _check_training(path: str, training: Section, images: int, size: int) -> None:
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


def _check_criterion(path: str, name: str, entry: Section) -> None:
    if name == "own" or name.startswith("uniform"):
        raise ConfigurationError(f"config: {path}: '{name}' says where widths come from; choose another name")
    try:
        CriterionSettings(**{key: value for key, value in entry.items() if key not in ("autoencoder", "calibration")})
    except ScapError as error:
        raise ConfigurationError(f"config: {path}: {str(error).removeprefix('criterion: ')}") from error


def _check_grid(path: str, grid: Section, config: Section) -> None:
    for key in ("networks", "criteria", "compensations"):
        for name in grid[key]:
            _known(name, config[key], f"{path}.{key}", key)
    for widths in grid["widths"]:
        names = {"own", "uniform"} | config["criteria"].keys() | {f"uniform-{name}" for name in config["criteria"]}
        _known(widths, sorted(names), f"{path}.widths", "own, uniform, criteria")
    for key in ("widths", "compensations"):
        if not grid[key]:
            raise ConfigurationError(f"config: {path}.{key}: is empty; name one at least, or leave it out")
    if not any(grid[key] for key in ("thresholds", "macs", "params")):
        raise ConfigurationError(f"config: {path}: no size is given; list thresholds, macs or params")
    for network, schedule in product(grid["networks"], grid["schedules"]):
        names = ["none", *config["networks"][network]["finetuning"]]
        _known(schedule, names, f"{path}.schedules", f"networks.{network}.finetuning")
        if schedule != "none":
            _check_rounds(path, grid, schedule, config["networks"][network]["finetuning"][schedule]["rounds"])
    for network in grid["networks"]:
        _check_calibrations(path, grid, network, config)


def _check_rounds(path: str, grid: Section, schedule: str, rounds: int) -> None:
    if rounds > 1 and grid["thresholds"]:
        problem = f"'{schedule}' prunes in {rounds} rounds, each of which takes its part of a budget; give macs or params"
        raise ConfigurationError(f"config: {path}.thresholds: {problem}")
    if rounds > 1 and (others := [widths for widths in grid["widths"] if widths not in ("own", "uniform")]):
        problem = f"'{schedule}' prunes in {rounds} rounds, which have no scores of {others[0]!r}; take own or uniform"
        raise ConfigurationError(f"config: {path}.widths: {problem}")


def _check_calibrations(path: str, grid: Section, network: str, config: Section) -> None:
    entry = config["networks"][network]
    available = SIZES[config["datasets"][entry["dataset"]]["source"]][0] - entry["holdout"]
    available = min(available, entry.get("train_images", available))
    scored = {*grid["criteria"], *(widths.removeprefix("uniform-") for widths in grid["widths"])} - {"own", "uniform"}
    asked = {f"criteria.{name}.calibration": config["criteria"][name]["calibration"]["images"] for name in sorted(scored)}
    asked |= {
        f"compensations.{name}": config["compensations"][name]["images"]
        for name in grid["compensations"]
        if config["compensations"][name]["how"] != "none"
    }
    for key, images in asked.items():
        if images > available:
            raise ConfigurationError(
                f"config: {key}.images: {images} are more than the {available} training images of {network}; give fewer"
            )
    for name in sorted(scored):
        _check_bottleneck(f"criteria.{name}", config["criteria"][name], network, entry)


def _check_bottleneck(path: str, criterion: Section, network: str, entry: Section) -> None:
    if entry["architecture"] not in PRUNABLE or not fits_autoencoders(criterion):
        return
    layer, channels = min(channels_of(entry).items(), key=lambda item: item[1])
    images, size = criterion["calibration"]["images"], criterion["autoencoder"]["bottleneck"]
    if size > images * channels:
        spectra = f"{images * channels} spectra of {layer} of {network} ({images} images, {channels} channels)"
        raise ConfigurationError(f"config: {path}.autoencoder.bottleneck: {size} is more than the {spectra}; give less")


def fits_autoencoders(criterion: Section) -> bool:
    """Whether a criterion fits autoencoders."""
    return any("autoencoder" in needs(term) for term in criterion["terms"])


def sees_spectra(criterion: Section) -> bool:
    """Whether a criterion fits autoencoders in the frequency domain."""
    return fits_autoencoders(criterion) and criterion["autoencoder"]["domain"] == "frequency"


def _check_results(path: str, comparison: Section, config: Section) -> None:
    criteria, made = list(_criteria(comparison)), {*comparison["tables"], *comparison["figures"]}
    if not made:
        raise ConfigurationError(f"config: {path}: names no table and no figure; nothing would be made of its runs")
    where = f"config: {path}: "
    alone = [grid for grid in comparison["runs"] if not all(config["networks"][name]["coupled"] for name in grid["networks"])]
    if "method" in made and not any(sees_spectra(config["criteria"][name]) for grid in alone for name in grid["criteria"]):
        raise ConfigurationError(
            f"{where}'method' needs a criterion with the term fidelity whose autoencoder is not of 'domain: space', of a "
            "network that is not coupled; add one, or leave 'method' out"
        )
    coupled = [name for grid in comparison["runs"] for name in grid["networks"] if config["networks"][name]["coupled"]]
    if "sensitivity" in made and coupled:
        raise ConfigurationError(
            f"{where}'sensitivity' compares layers that go alone, but '{coupled[0]}' is coupled; leave one of them out"
        )
    if "sensitivity" in made and "l1" not in config["criteria"][criteria[0]]["terms"]:
        raise ConfigurationError(
            f"{where}'sensitivity' compares rankings with the L1 norm in the scores of the first criterion; "
            f"put one with the term l1 before '{criteria[0]}'"
        )
    untrained = all(schedule == "none" for grid in comparison["runs"] for schedule in grid["schedules"])
    if untrained and "finetuning" in made:
        raise ConfigurationError(f"{where}'finetuning' draws trainings, but all schedules are 'none'; leave it out")


def _criteria(comparison: Section) -> Iterator[str]:
    return (name for grid in comparison["runs"] for name in grid["criteria"])


def _known(name: str, names: Iterable[str], path: str, where: str) -> None:
    if name not in names:
        raise ConfigurationError(f"config: {path}: {str(name)[:60]!r} is not in {where}; {choose(name, names)}")
