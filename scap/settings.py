"""Settings as dataclasses: each field says what it means and what it may hold, once.

The checks, `help()`, and the schema of the workflow's configuration (workflow/schema.py) are made from these fields.
"""

import inspect
import math
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from scap.checks import shown
from scap.errors import ScapError

# Bound of a field, in the words of JSON Schema -> whether a value keeps it, and how a message says it.
BOUNDS = {
    "minimum": (lambda value, bound: value >= bound, "at least {}"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "above {}"),
    "maximum": (lambda value, bound: value <= bound, "at most {}"),
    "exclusiveMaximum": (lambda value, bound: value < bound, "below {}"),
}
KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}
Class = TypeVar("Class", bound=type)
Given = TypeVar("Given", bound="Settings")


def option(description: str, default: Any = MISSING, *, choices: Iterable[str] = (), **bounds: Any) -> Any:
    """A field of a settings class: its meaning, its default, and what it may hold.

    `bounds` are those of JSON Schema: minimum, exclusiveMinimum, maximum, exclusiveMaximum; in a list they hold for each item,
    and `repeats` admits an item twice.
    """
    metadata: dict[str, Any] = {"description": description, **bounds}
    if choices:
        metadata["choices"] = tuple(choices)
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def described(cls: Class) -> Class:
    """Add the fields, with meaning, default and bounds, to the docstring of a settings class."""
    lines = [f"    {each.name}: {_describe(each)}" for each in fields(cls) if "description" in each.metadata]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *lines])
    return cls


def _describe(each: Field) -> str:
    facts = [text.format(each.metadata[name]) for name, (_, text) in BOUNDS.items() if name in each.metadata]
    if "choices" in each.metadata:
        facts.append(", ".join(each.metadata["choices"]))
    if each.default is not MISSING:
        facts.append(f"default {each.default!r}")
    elif each.default_factory is not MISSING:
        facts.append(f"default {each.default_factory()!r}")
    return f"{each.metadata['description']}{' (' + '; '.join(facts) + ')' if facts else ''}"


class Settings:
    """Base of the settings classes: a value of the wrong kind or out of bounds is refused, by name."""

    SECTION: ClassVar[str] = "settings"  # names the class in messages

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            check_value(getattr(self, each.name), each, f"{self.SECTION}: {each.name}")


def given(value: object, cls: type[Given], name: str) -> Given:
    """The argument `name` of a function, if it is of the settings class; else ScapError."""
    if not isinstance(value, cls):
        raise ScapError(f"{name} is {shown(value)} ({type(value).__name__}); give scap.{cls.__name__}(...)")
    return value


def check_value(value: object, each: Field, where: str) -> None:
    """Raise ScapError where a value is not what its field may hold; `where` begins the message."""
    if get_origin(each.type) is list:
        _check_list(value, each, where)
        return
    kinds, kind = KINDS.get(each.type, ((object,), ""))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
        raise ScapError(f"{where} is {shown(value)}; it must be {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ScapError(f"{where} is {value}; it must be a finite number")
    for name, (keeps, text) in BOUNDS.items():
        if name in each.metadata and not keeps(value, each.metadata[name]):
            raise ScapError(f"{where} is {shown(value)}; it must be {text.format(each.metadata[name])}")
    if "choices" in each.metadata and value not in each.metadata["choices"]:
        raise ScapError(f"{where} is {shown(value)}; {choose(value, each.metadata['choices'])}")


def _check_list(values: object, each: Field, where: str) -> None:
    if not isinstance(values, list | tuple):
        raise ScapError(f"{where} is {shown(values)}; it must be a list")
    item = copy(each)
    item.type = get_args(each.type)[0]
    for value in values:
        check_value(value, item, where)


def choose(value: object, names: Iterable[str] | Mapping[str, object]) -> str:
    """The end of a message on an unknown name: the nearest known one, or all of them."""
    known = list(names)
    close = get_close_matches(str(value), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
