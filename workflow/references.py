"""Names of a configuration that refer to nothing, and entries that do not fit together: one message a mistake."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from scap.criterion.settings import CriterionSettings
from scap.criterion.terms import needs
from scap.errors import ScapError
from scap.models.names import PRUNABLE
from workflow.network_checks import REPEATED, Data, channels_of, check_data, check_known, check_network
from workflow.yaml_files import ConfigurationError

NOT_NETWORKS = ("data", "figures", "tables")  # folders below results/
RULES = Path(__file__).with_name("rules")
RULE = r"^(?:use rule \w+ as|rule) (\w+)"
Section = dict[str, Any]


def check_references(config: Section, surveyed: Mapping[str, int] | None = None) -> None:
    """Raise ConfigurationError where a name refers to nothing, or entries do not fit together.

    `surveyed`: training images of data sets that are folders. They are counted only for the targets that read them, and what
    depends on the number is checked then.
    """
    _check_names(config)
    data = {name: check_data(name, entry, (surveyed or {}).get(name)) for name, entry in config["datasets"].items()}
    for name, entry in config["networks"].items():
        if name in NOT_NETWORKS:
            raise ConfigurationError(f"config: networks.{name}: results/{name}/ holds other results; choose another name")
        check_known(entry["dataset"], config["datasets"], f"networks.{name}.dataset", "datasets")
        check_network(f"networks.{name}", entry, data[entry["dataset"]])
    for name, entry in config["criteria"].items():
        _check_criterion(f"criteria.{name}", name, entry)
    if config["compensations"].get("none", {"how": "none"})["how"] != "none":
        raise ConfigurationError("config: compensations.none.how: this name stands for no compensation; choose another name")
    for name, comparison in config["comparisons"].items():
        for index, grid in enumerate(comparison["runs"]):
            _check_grid(f"comparisons.{name}.runs.{index}", grid, config, data)
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
            check_known(member, config["comparisons"], f"targets.{name}", "comparisons")


def _check_criterion(path: str, name: str, entry: Section) -> None:
    if name == "own" or name.startswith("uniform"):
        raise ConfigurationError(f"config: {path}: '{name}' says where widths come from; choose another name")
    try:
        CriterionSettings(**{key: value for key, value in entry.items() if key not in ("autoencoder", "calibration")})
    except ScapError as error:
        raise ConfigurationError(f"config: {path}: {str(error).removeprefix('criterion: ')}") from error
    images, solved = entry["calibration"]["images"], [term for term in entry["terms"] if "images" in needs(term)]
    if solved and images < 2:
        raise ConfigurationError(f"config: {path}.calibration.images: {solved[0]} needs 2 at least, not {images}; give more")


def _check_grid(path: str, grid: Section, config: Section, data: dict[str, Data]) -> None:
    for key in ("networks", "criteria", "compensations"):
        for name in grid[key]:
            check_known(name, config[key], f"{path}.{key}", key)
    for widths in grid["widths"]:
        names = {"own", "uniform"} | config["criteria"].keys() | {f"uniform-{name}" for name in config["criteria"]}
        check_known(widths, sorted(names), f"{path}.widths", "own, uniform, criteria")
    for key in ("widths", "compensations"):
        if not grid[key]:
            raise ConfigurationError(f"config: {path}.{key}: is empty; name one at least, or leave it out")
    if not any(grid[key] for key in ("thresholds", "macs", "params", "budgets")):
        raise ConfigurationError(f"config: {path}: no size is given; list thresholds, macs, params or budgets")
    for network, schedule in product(grid["networks"], grid["schedules"]):
        names = ["none", *config["networks"][network]["finetuning"]]
        check_known(schedule, names, f"{path}.schedules", f"networks.{network}.finetuning")
        if schedule != "none":
            _check_rounds(path, grid, schedule, config["networks"][network]["finetuning"][schedule]["rounds"])
    for network in grid["networks"]:
        _check_calibrations(grid, network, config, data[config["networks"][network]["dataset"]])


def _check_rounds(path: str, grid: Section, schedule: str, rounds: int) -> None:
    if rounds > 1 and grid["thresholds"]:
        problem = f"'{schedule}' prunes in {rounds} rounds, each of which takes its part of a budget; give macs or params"
        raise ConfigurationError(f"config: {path}.thresholds: {problem}")
    if rounds > 1 and (others := [widths for widths in grid["widths"] if widths not in ("own", "uniform")]):
        problem = f"'{schedule}' prunes in {rounds} rounds, which have no scores of {others[0]!r}; take own or uniform"
        raise ConfigurationError(f"config: {path}.widths: {problem}")


def _check_calibrations(grid: Section, network: str, config: Section, data: Data) -> None:
    entry = config["networks"][network]
    available = data.images - entry["holdout"]
    available = min(available, entry.get("train_images", available))
    scored = {*grid["criteria"], *(widths.removeprefix("uniform-") for widths in grid["widths"])} - {"own", "uniform"}
    in_one_job = entry["coupled"] or any(
        entry["finetuning"].get(name, {"rounds": 1})["rounds"] > 1 for name in grid["schedules"]
    )
    asked = {
        f"criteria.{name}.calibration": config["criteria"][name]["calibration"]["images"]
        for name in sorted(scored)
        if in_one_job or reads_images(config["criteria"][name])
    }
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


def reads_images(criterion: Section) -> bool:
    """Whether a criterion is measured on calibration images; one job that makes all scores always draws them."""
    return any({"outputs", "images", "autoencoder"} & needs(term) for term in criterion["terms"])


def fits_autoencoders(criterion: Section) -> bool:
    """Whether a criterion fits autoencoders."""
    return any("autoencoder" in needs(term) for term in criterion["terms"])


def sees_spectra(criterion: Section) -> bool:
    """Whether a criterion fits autoencoders in the frequency domain."""
    return fits_autoencoders(criterion) and criterion["autoencoder"]["domain"] == "frequency"


def _check_results(path: str, comparison: Section, config: Section) -> None:
    made = {*comparison["tables"], *comparison["figures"]}
    if not made:
        raise ConfigurationError(f"config: {path}: names no table and no figure; nothing would be made of its runs")
    check_made(path, comparison, made, config)


def check_made(path: str, comparison: Section, made: set[str], config: Section) -> None:
    """Raise ConfigurationError where tables or figures, listed or asked for by path, cannot be made of a comparison's runs."""
    criteria, where = list(_criteria(comparison)), f"config: {path}: "
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
