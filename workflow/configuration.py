"""Checks of the configuration: one message that names the key and the way out, before any work."""

from difflib import get_close_matches
from itertools import product

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from scap.models.names import PRUNABLE

REFERENCES = {  # section -> key of its entries -> section that holds the name
    "networks": {"dataset": "datasets"},
    "autoencoders": {"calibration": "calibrations"},
    "criteria": {"autoencoder": "autoencoders", "widths_of": "criteria"},
}


class ConfigurationError(ValueError):
    """A mistake in the configuration."""


def check_schema(config: dict, schema: dict) -> None:
    """Raise ConfigurationError where `config` breaks the JSON schema."""
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        path = ".".join(str(part) for part in error.absolute_path) or "the top level"
        raise ConfigurationError(f"config: {path}: {_explain(error)}")


def _explain(error: ValidationError) -> str:
    if error.validator == "pattern":
        return f"'{error.instance}' cannot be a name; use lower-case letters, digits and single hyphens, a letter first"
    if error.validator != "additionalProperties":
        what = error.schema.get("description", "")
        return f"{error.message}. {what}".strip()
    known = list(error.schema.get("properties", {}))
    unknown = next(key for key in error.instance if key not in known)
    close = get_close_matches(unknown, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"the keys are {', '.join(known)}"
    return f"unknown key '{unknown}'; {hint}"


def check_references(config: dict) -> None:
    """Raise ConfigurationError where a name refers to nothing, or entries do not fit together."""
    for section, keys in REFERENCES.items():
        for (name, entry), (key, target) in product(config[section].items(), keys.items()):
            if key in entry:
                _known(entry[key], config[target], f"{section}.{name}.{key}", target)
    for name, entry in config["datasets"].items():
        if entry["source"] != "digits" and "root" not in entry:
            raise ConfigurationError(f"config: datasets.{name}: 'root' is missing; name the folder of the official files")
    for name, entry in config["criteria"].items():
        _check_criterion(name, entry, config["criteria"])
    for name, entry in config["networks"].items():
        for layer in entry.get("layers", []):
            _known(
                layer,
                PRUNABLE[entry["architecture"]],
                f"networks.{name}.layers",
                f"the layers of {entry['architecture']}",
            )
    for name, grids in config["comparisons"].items():
        for index, grid in enumerate(grids):
            _check_grid(f"comparisons.{name}.{index}", grid, config)
        criteria = [config["criteria"][criterion] for grid in grids for criterion in grid["criteria"]]
        if not any(sees_spectra(criterion, config["autoencoders"]) for criterion in criteria):
            raise ConfigurationError(
                f"config: comparisons.{name}: the figure 'method' needs a criterion of method scap whose autoencoder is not "
                "of 'domain: space'; add one"
            )
    for name, study in config["studies"].items():
        _known(study["network"], config["networks"], f"studies.{name}.network", "networks")
        for criterion in study["criteria"]:
            _known(criterion, config["criteria"], f"studies.{name}.criteria", "criteria")
        first = study["criteria"][0]
        if config["criteria"][first]["magnitude_of"] != "filter":
            raise ConfigurationError(
                f"config: studies.{name}.criteria: '{first}' stands first and all are compared with the L1 norm in its "
                "scores; put one with 'magnitude_of: filter' first"
            )
        if name in config["comparisons"]:
            raise ConfigurationError(f"config: studies.{name}: a comparison has this name too; rename one of them")
    for name, members in config["targets"].items():
        for member in members:
            _known(member, config["comparisons"] | config["studies"], f"targets.{name}", "comparisons or studies")


def sees_spectra(criterion: dict, autoencoders: dict) -> bool:
    """Whether a criterion is SCAP itself, in the frequency domain."""
    return criterion["method"] == "scap" and autoencoders[criterion["autoencoder"]]["domain"] == "frequency"


def _check_criterion(name: str, entry: dict, criteria: dict) -> None:
    if entry["method"] == "scap" and "autoencoder" not in entry:
        raise ConfigurationError(f"config: criteria.{name}: method scap needs 'autoencoder'; name an entry of autoencoders")
    if entry["method"] != "scap" and entry["magnitude_of"] != "filter":
        raise ConfigurationError(
            f"config: criteria.{name}.magnitude_of: '{entry['magnitude_of']}' needs method scap, which records activations; "
            "for a ranking by it alone add 'fusion: magnitude'"
        )
    if entry["uniform"] and "widths_of" not in entry:
        raise ConfigurationError(
            f"config: criteria.{name}: 'uniform' needs 'widths_of'; name the criterion whose MACs it meets"
        )
    if "widths_of" in entry and "widths_of" in criteria[entry["widths_of"]]:
        raise ConfigurationError(
            f"config: criteria.{name}.widths_of: '{entry['widths_of']}' has its widths from another criterion; name that one"
        )


def _check_grid(path: str, grid: dict, config: dict) -> None:
    for key in ("networks", "criteria"):
        for name in grid[key]:
            _known(name, config[key], f"{path}.{key}", key)
    for network, track in product(grid["networks"], grid["tracks"]):
        tracks = config["networks"][network]["finetuning"]
        _known(track, tracks, f"{path}.tracks", f"networks.{network}.finetuning")


def _known(name: str, names: dict | list, path: str, where: str) -> None:
    if name not in names:
        close = get_close_matches(name, list(names), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names)}"
        raise ConfigurationError(f"config: {path}: '{name}' is not in {where}; {hint}")
