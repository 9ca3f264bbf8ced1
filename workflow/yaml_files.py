"""YAML as people mean it: a key twice, or a value that YAML 1.1 reads as something else, is refused with its line."""

import re
from pathlib import Path
from typing import Any

import yaml

from scap.errors import ScapError

# Plain scalars that YAML 1.1 takes for booleans, octal or sexagesimal numbers or dates, but few people do.
SURPRISES = re.compile(
    r"[-+]?0[0-7_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|yes|no|on|off|\d{4}-\d\d?-\d\d?.*", re.IGNORECASE
)
MOST = 100_000  # values in a file, with those that aliases repeat


class ConfigurationError(ScapError):
    """A mistake in the configuration."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Keys are checked as they are written: later, `<<` has put others among them."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(problem="a key is not text; quote it", problem_mark=key.start_mark)
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` merges: a mapping's own keys count before those, the first of several mappings before the others."""
        merges = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        node.value = [(key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
        found = {key.value: (key, value) for key, value in node.value}
        for source in (each for merge in merges for each in (merge.value if merge.id == "sequence" else [merge])):
            if not isinstance(source, yaml.MappingNode):
                raise yaml.MarkedYAMLError(problem="<< can merge mappings only", problem_mark=source.start_mark)
            self.flatten_mapping(source)
            for key, value in source.value:
                found.setdefault(key.value, (key, value))
        node.value = list(found.values())


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
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"{path}: cannot be read as YAML in UTF-8 ({reason})") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path}: holds no sections; the first level must be `name:`")
    return _copy(found, path, (), [MOST])


def read_texts(value: Any, path: str = "") -> Any:
    """Numbers, true and false that stand as text in a value, which is how --config gives those inside a mapping."""
    if isinstance(value, dict):
        return {key: read_texts(part, f"{path}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [read_texts(part, path) for part in value]
    if not isinstance(value, str):
        return value
    if SURPRISES.fullmatch(value):
        problem = f"{value!r} can be read in two ways; write a plain number, true or false, or use --configfile"
        raise ConfigurationError(f"config: {path[1:]}: {problem}")
    try:
        found = yaml.load(value, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError):
        return value
    return found if isinstance(found, int | float) else value


def _copy(value: Any, path: Path, above: tuple[int, ...], left: list[int]) -> Any:
    """A copy in which no part stands in two places, as aliases make it: one place may be changed without the other."""
    if not isinstance(value, dict | list):
        return value
    left[0] -= len(value)
    if id(value) in above:
        raise ConfigurationError(f"{path}: an anchor contains itself")
    if left[0] < 0:
        raise ConfigurationError(f"{path}: holds more than {MOST} values; use fewer anchors")
    above = (*above, id(value))
    if isinstance(value, list):
        return [_copy(part, path, above, left) for part in value]
    return {key: _copy(part, path, above, left) for key, part in value.items()}
