"""The configuration: files put together, variants resolved, checked with one message a mistake, before any work."""

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from scap.settings import choose
from workflow.idle_settings import check_idle
from workflow.references import check_references
from workflow.yaml_files import ConfigurationError, read_texts, read_yaml

WHOLE = ("terms", "normalise")  # replaced as a whole by a variant; other mappings are merged key by key
LONGEST = 1000  # letters of a text
LARGEST = 2**63 - 1  # of whole numbers
KEYED = ("datasets", "networks", "criteria", "compensations", "comparisons", "targets")  # sections of named entries


def load_configuration(folder: Path, files: Iterable[Path] = (), values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The checked configuration: config.yaml and experiments/*.yaml of `folder`, the user's `files` on top, then `values`."""
    config = read_files([folder / "config.yaml", *sorted((folder / "experiments").glob("*.yaml"))])
    written = config
    for given in (*map(read_yaml, files), read_texts(dict(values or {}))):
        config = merge(config, given)
        written = written | {section: merge_entries(written.get(section), entries) for section, entries in given.items()}
    return checked(config, json.loads((folder / "schema.json").read_text()), written)


def checked(config: dict[str, Any], schema: dict[str, Any], written: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration with its variants spelt out and its defaults filled in; ConfigurationError names the first mistake.

    `written`: each entry as the last file that names it has it, where there are several.
    """
    refuse_odd_values(config)
    written, config = written or config, resolve_variants(config)
    check_schema(config, schema)
    config = completed(config, schema)
    check_references(config)
    check_idle(written, config)
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


def merge_entries(base: Any, changes: Any) -> Any:
    """The entries of two files, each as the last one has it."""
    return base | changes if isinstance(base, dict) and isinstance(changes, dict) else changes


def refuse_odd_values(value: object, path: str = "") -> None:
    """Refuse what JSON Schema lets pass: keys that are not text, text that cannot be printed, numbers that are not finite."""
    where = f"config: {path[1:200] or 'the top level'}"
    if isinstance(value, float) and (not math.isfinite(value) or str(value) == "-0.0"):
        raise ConfigurationError(f"{where}: {value} is no number to be used here; give a finite one, or 0")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigurationError(f"{where}: {str(value)[:20]}... has too many digits; give a smaller number")
    if isinstance(value, str) and (not value.isprintable() or len(value) > LONGEST or {*value} & {*"{}"}):
        problem = (
            f"is longer than {LONGEST} letters" if len(value) > LONGEST else "holds a brace, line break or control character"
        )
        raise ConfigurationError(f"{where}: {value[:40]!r} {problem}; shorten it or leave them out")
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict) and not isinstance(key, str):
            raise ConfigurationError(f"{where}: the key {key!r} is not text; quote it")
        if isinstance(value, dict):
            refuse_odd_values(key, f"{path}.{key!r}" if not key.isprintable() else path)
        refuse_odd_values(part, f"{path}.{key}")


def resolve_variants(config: dict[str, Any]) -> dict[str, Any]:
    """Every entry that is `like` another of its section, spelt out; in `finetuning` of a network too."""
    resolved = {name: entries for name, entries in config.items() if name not in KEYED}
    for section in KEYED:
        if section in config:
            resolved[section] = _resolve(config[section], section)
    networks = resolved.get("networks")
    for name, network in networks.items() if isinstance(networks, dict) else ():
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
        if not isinstance(other, str) or other not in entries:
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
    error = min(_Validator(schema).iter_errors(config), key=_rank, default=None)
    if error is not None:
        path = ".".join(str(part) for part in error.absolute_path) or "the top level"
        raise ConfigurationError(f"config: {path}: {_explain(error)}")


def _rank(error: ValidationError) -> tuple[int, list[str]]:
    """Errors near the top first; jsonschema gives them in any order."""
    return len(error.absolute_path), [str(part) for part in error.absolute_path]


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


def completed(value: Any, schema: dict[str, Any]) -> Any:
    """`value` with the defaults of its schema, and equal settings spelt alike: keys in order, numbers with a point.

    Snakemake makes a result again where the text of its settings differs.
    """
    if isinstance(value, list):
        return [completed(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return float(value) if schema.get("type") == "number" else value
    properties, other = schema.get("properties", {}), schema.get("additionalProperties")
    other = other if isinstance(other, dict) else {}
    value = {key: copy.deepcopy(entry["default"]) for key, entry in properties.items() if "default" in entry} | value
    free = [key for key in value if key not in properties]
    names = [key for key in properties if key in value] + (sorted(free) if other.get("type") in ("number", "string") else free)
    return {key: completed(value[key], properties.get(key) or other) for key in names}
