"""YAML as people mean it: a key twice, or a value that YAML 1.1 reads as something else, is refused with its line."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# Plain scalars that YAML 1.1 takes for booleans, octal or sexagesimal numbers or dates, but few people do.
SURPRISES = re.compile(
    r"[-+]?0[0-7_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|yes|no|on|off|\d{4}-\d\d?-\d\d?.*", re.IGNORECASE
)


class ConfigurationError(ValueError):
    """A mistake in the configuration."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in node.value:
            if keys.count(key.value) > 1 and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark)
            if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem="a key is not text; quote it", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _refuse_surprises(loader: _Loader, node: yaml.ScalarNode) -> None:
    raise yaml.MarkedYAMLError(
        problem=f"{node.value} can be read in two ways; quote it, or write a plain number or true or false",
        problem_mark=node.start_mark,
    )


def _compose_scalar(kind: str) -> Any:
    construct = yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]

    def checked(loader: _Loader, node: yaml.ScalarNode) -> Any:
        if SURPRISES.fullmatch(node.value):
            _refuse_surprises(loader, node)
        return construct(loader, node)

    return checked


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _compose_scalar(_kind))
# 1e-3 is a number, as in JSON; YAML 1.1 wants 1.0e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; ConfigurationError, in one line, where it is none or cannot be read."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"{path}: cannot be read as YAML in UTF-8 ({reason})") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path}: holds no sections; the first level must be `name:`")
    _refuse_loops(found, path, ())
    return found


def _refuse_loops(value: object, path: Path, above: tuple[int, ...]) -> None:
    if id(value) in above:
        raise ConfigurationError(f"{path}: an anchor contains itself")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_loops(part, path, (*above, id(value)))
