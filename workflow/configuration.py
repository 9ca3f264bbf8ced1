"""The configuration: files put together, variants resolved, checked with one message a mistake, before any work."""

import copy
import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend

from scap.criterion.settings import CriterionSettings
from scap.criterion.terms import needs
from scap.data.sources import SIZES
from scap.errors import ScapError
from scap.models.names import PRUNABLE, check_architecture
from scap.settings import choose
from workflow.yaml_files import ConfigurationError, read_yaml

WHOLE = ("terms", "normalise")  # replaced as a whole by a variant; other mappings are merged key by key
KEYED = ("datasets", "networks", "criteria", "compensations", "comparisons", "targets")  # sections of named entries


def load_configuration(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The checked configuration: config.yaml and experiments/*.yaml of `folder`, with what the user has `given` on top."""
    config = read_files([folder / "config.yaml", *sorted((folder / "experiments").glob("*.yaml"))])
    config = merge(config, copy.deepcopy(given))
    refuse_odd_values(config, "config")
    config = resolve_variants(config)
    schema = json.loads((folder / "schema.json").read_text())
    check_schema(config, schema)
    fill_defaults(config, schema)
    check_references(config)
    return config


def read_files(paths: list[Path]) -> dict[str, Any]:
    """The sections of all files together; an entry may stand in one file only."""
    config: dict[str, Any] = {}
    places: dict[tuple[str, str], Path] = {}
    for path in paths:
        for section, entries in read_yaml(path).items():
            if not isinstance(entries, dict):
                raise ConfigurationError(f"{path}: {section}: holds no named entries")
            for name in entries:
                if other := places.get((section, name)):
                    raise ConfigurationError(f"{path}: {section}.{name}: stands in {other} too; rename one of them")
                places[section, name] = path
            config[section] = config.get(section, {}) | copy.deepcopy(entries)
    return config


def merge(base: Any, changes: Any, key: str = "") -> Any:
    """`base` with `changes` on top: mappings key by key (but those in WHOLE), anything else replaced."""
    if not isinstance(base, dict) or not isinstance(changes, dict) or key in WHOLE:
        return changes
    return base | {name: merge(base[name], value, name) if name in base else value for name, value in changes.items()}


def refuse_odd_values(value: object, path: str) -> None:
    """Refuse keys that are not text and numbers that are not finite, which JSON Schema lets pass."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{path}: {value} is no finite number")
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict) and not isinstance(key, str):
            raise ConfigurationError(f"{path}: the key {key!r} is not text; quote it")
        refuse_odd_values(part, f"{path}.{key}"[:200].replace("\n", "\\n"))


def resolve_variants(config: dict[str, Any]) -> dict[str, Any]:
    """Every entry that is `like` another of its section, spelt out; in `finetuning` of a network too."""
    resolved = {name: entries for name, entries in config.items() if name not in KEYED}
    for section in KEYED:
        if section in config:
            resolved[section] = _resolve(config[section], section)
    for name, network in resolved.get("networks", {}).items():
        if isinstance(network, dict) and "finetuning" in network:
            network["finetuning"] = _resolve(network["finetuning"], f"networks.{name}.finetuning")
    return resolved


def _resolve(entries: Any, path: str) -> Any:
    if not isinstance(entries, dict):
        return entries

    def spelt_out(name: str, above: tuple[str, ...]) -> Any:
        entry = entries[name]
        if not isinstance(entry, dict) or "like" not in entry:
            return copy.deepcopy(entry)
        other = entry["like"]
        if other not in entries:
            raise ConfigurationError(f"config: {path}.{name}.like: {other!r} is not in {path}; {choose(other, entries)}")
        if other in above:
            raise ConfigurationError(f"config: {path}.{name}.like: '{other}' is like '{name}' itself")
        changes = {key: copy.deepcopy(value) for key, value in entry.items() if key != "like"}
        return merge(spelt_out(other, (*above, other)), changes)

    return {name: spelt_out(name, (name,)) for name in entries}


def _is_integer(checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 2.0 is none: it would fail where it is used


_Validator = extend(Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer))


def check_schema(config: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raise ConfigurationError where `config` breaks the JSON schema."""
    error = best_match(_Validator(schema).iter_errors(config))
    if error is not None:
        path = ".".join(str(part) for part in error.absolute_path) or "the top level"
        raise ConfigurationError(f"config: {path}: {_explain(error)}")


def _explain(error: ValidationError) -> str:
    if error.validator in ("pattern", "maxLength"):
        name = repr(error.instance[:40])
        return f"{name} cannot be a name; use at most 60 lower-case letters, digits and single hyphens, a letter first"
    if error.validator != "additionalProperties":
        message = error.message if len(error.message) < 200 else f"{error.message[:200]} ..."
        return f"{message}. {error.schema.get('description', '')}".strip().replace("\n", "\\n")
    known = list(error.schema.get("properties", {}))
    unknown = next(key for key in error.instance if key not in known)
    return f"unknown key {unknown[:60]!r}; {choose(unknown, known)}"


def fill_defaults(value: Any, schema: dict[str, Any]) -> None:
    """Add what `value` leaves out and its schema has a default for, in place."""
    if isinstance(value, list):
        for item in value:
            fill_defaults(item, schema.get("items", {}))
    if not isinstance(value, dict):
        return
    properties = schema.get("properties", {})
    for key, entry in properties.items():
        if key not in value and "default" in entry:
            value[key] = copy.deepcopy(entry["default"])
    other = schema.get("additionalProperties")
    for key, part in value.items():
        fill_defaults(part, properties.get(key) or (other if isinstance(other, dict) else {}))


def check_references(config: dict[str, Any]) -> None:
    """Raise ConfigurationError where a name refers to nothing, or entries do not fit together."""
    for name, entry in config["datasets"].items():
        if entry["source"] != "digits" and "root" not in entry:
            raise ConfigurationError(f"config: datasets.{name}: 'root' is missing; name the folder of the official files")
    for name, entry in config["networks"].items():
        _known(entry["dataset"], config["datasets"], f"networks.{name}.dataset", "datasets")
        _check_network(f"networks.{name}", entry, config["datasets"][entry["dataset"]]["source"])
    for name, entry in config["criteria"].items():
        _check_criterion(f"criteria.{name}", name, entry)
    for name, comparison in config["comparisons"].items():
        for index, grid in enumerate(comparison["runs"]):
            _check_grid(f"comparisons.{name}.runs.{index}", grid, config)
        _check_figures(f"comparisons.{name}", comparison, config)
    for name, members in config["targets"].items():
        for member in members:
            _known(member, config["comparisons"], f"targets.{name}", "comparisons")


def _check_network(path: str, entry: dict[str, Any], source: str) -> None:
    try:
        check_architecture(entry["architecture"])
    except ScapError as error:
        raise ConfigurationError(f"config: {path}.{error}") from error
    for layer in entry.get("layers", []):
        names = PRUNABLE.get(entry["architecture"], entry["layers"])
        _known(layer, names, f"{path}.layers", f"the layers of {entry['architecture']}")
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
    images = min(left, entry.get("train_images", left))
    if entry.get("train_images", 1) > left:
        raise ConfigurationError(f"config: {path}.train_images: {source} has {left} left beside the holdout; give fewer")
    trainings = {"baseline": entry["baseline"]} if "baseline" in entry else {}
    for key, training in {**trainings, **_schedules(entry)}.items():
        for setting, limit in {"batch_size": images, "crop": size - 1, "cutout": size}.items():
            if training[setting] > limit:
                raise ConfigurationError(f"config: {path}.{key}.{setting}: {training[setting]} is more than {limit}; give less")


def _schedules(network: dict[str, Any]) -> dict[str, Any]:
    return {f"finetuning.{name}": schedule for name, schedule in network["finetuning"].items()}


def _check_criterion(path: str, name: str, entry: dict[str, Any]) -> None:
    if name == "own" or name.startswith("uniform"):
        raise ConfigurationError(f"config: {path}: '{name}' says where widths come from; choose another name")
    try:
        CriterionSettings(**{key: value for key, value in entry.items() if key not in ("autoencoder", "calibration")})
    except ScapError as error:
        raise ConfigurationError(f"config: {path}: {str(error).removeprefix('criterion: ')}") from error


def _check_grid(path: str, grid: dict[str, Any], config: dict[str, Any]) -> None:
    for key in ("networks", "criteria", "compensations"):
        for name in grid[key]:
            _known(name, config[key], f"{path}.{key}", key)
    for widths in grid["widths"]:
        names = {"own", "uniform"} | config["criteria"].keys() | {f"uniform-{name}" for name in config["criteria"]}
        _known(widths, sorted(names), f"{path}.widths", "own, uniform, criteria")
    if not any(grid[key] for key in ("thresholds", "macs", "params")):
        raise ConfigurationError(f"config: {path}: no size is given; list thresholds, macs or params")
    for network, schedule in product(grid["networks"], grid["schedules"]):
        names = ["none", *config["networks"][network]["finetuning"]]
        _known(schedule, names, f"{path}.schedules", f"networks.{network}.finetuning")
    for network in grid["networks"]:
        _check_calibrations(path, grid, network, config)


def _check_calibrations(path: str, grid: dict[str, Any], network: str, config: dict[str, Any]) -> None:
    entry = config["networks"][network]
    available = SIZES[config["datasets"][entry["dataset"]]["source"]][0] - entry["holdout"]
    available = min(available, entry.get("train_images", available))
    asked = {f"criteria.{name}.calibration": config["criteria"][name]["calibration"]["images"] for name in grid["criteria"]}
    asked |= {
        f"compensations.{name}": config["compensations"][name]["images"]
        for name in grid["compensations"]
        if config["compensations"][name]["how"] != "none"
    }
    for key, images in asked.items():
        if images > available:
            raise ConfigurationError(
                f"config: {key}.images: {images} are more than the {available} training images of {network}"
            )


def sees_spectra(criterion: dict[str, Any]) -> bool:
    """Whether a criterion fits autoencoders in the frequency domain."""
    return (
        any("autoencoder" in needs(term) for term in criterion["terms"]) and criterion["autoencoder"]["domain"] == "frequency"
    )


def _check_figures(path: str, comparison: dict[str, Any], config: dict[str, Any]) -> None:
    criteria = list(_criteria(comparison))
    if "method" in comparison["figures"] and not any(sees_spectra(config["criteria"][name]) for name in criteria):
        raise ConfigurationError(
            f"config: {path}.figures: 'method' needs a criterion with the term fidelity whose autoencoder is not of "
            "'domain: space'; add one, or leave the figure out"
        )
    if "sensitivity" in comparison["figures"] and "l1" not in config["criteria"][criteria[0]]["terms"]:
        raise ConfigurationError(
            f"config: {path}.figures: 'sensitivity' compares rankings with the L1 norm in the scores of the first criterion; "
            f"put one with the term l1 before '{criteria[0]}'"
        )
    if all(schedule == "none" for grid in comparison["runs"] for schedule in grid["schedules"]):
        for figure in {"finetuning"} & set(comparison["figures"]):
            raise ConfigurationError(f"config: {path}.figures: '{figure}' draws trainings, but all schedules are 'none'")


def _criteria(comparison: dict[str, Any]) -> Iterator[str]:
    return (name for grid in comparison["runs"] for name in grid["criteria"])


def _known(name: str, names: Any, path: str, where: str) -> None:
    if name not in names:
        raise ConfigurationError(f"config: {path}: {str(name)[:60]!r} is not in {where}; {choose(name, names)}")
