"""config/schema.json, made from the dataclasses of workflow/sections.py: python -m workflow.schema"""

import json
import types
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from scap.settings import BOUNDS
from scap.writing import write_whole
from workflow.sections import NAME, Configuration

PATH = Path("config/schema.json")
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
NAMES = {"pattern": NAME, "maxLength": 60}


def object_of(cls: type, description: str = "", **more: object) -> dict[str, Any]:
    """The schema of a dataclass: an object that holds its fields and nothing else."""
    every = [each for each in fields(cls) if "description" in each.metadata]
    required = [each.name for each in every if not optional(each)]
    schema = {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "properties": {each.name: property_of(each) for each in every},
        **more,
    }
    return schema | ({"required": required} if required else {})


def optional(each: Field) -> bool:
    """Whether a field may be left out."""
    return each.default is not MISSING or each.default_factory is not MISSING


def property_of(each: Field) -> dict[str, Any]:
    """The schema of a field: its type, bounds, default and description."""
    metadata = dict(each.metadata)
    description = metadata.pop("description")
    schema = type_of(each.type, metadata)
    text = description[0].upper() + description[1:].rstrip(".") + "."
    schema["description"] = text
    if "items" in schema:
        schema["items"]["description"] = text
        schema |= {"minItems": 1} if not optional(each) else {}
    if each.default_factory is not MISSING:
        schema["default"] = each.default_factory()
    elif each.default is not MISSING and each.default is not None:
        schema["default"] = each.default
    return schema


def type_of(annotation: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; bounds and choices of a list hold for its items, those of a mapping for its values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        first, *others = (argument for argument in arguments if argument is not type(None))
        found = type_of(first, metadata)
        return found | ({"type": [found["type"], *(TYPES[other] for other in others)]} if others else {})
    if origin is list:
        return {"type": "array", "items": type_of(arguments[0], metadata), "uniqueItems": "repeats" not in metadata}
    if origin is not None:  # a mapping
        names = {"propertyNames": NAMES} if is_dataclass(arguments[1]) else {}
        return {"type": "object", "additionalProperties": type_of(arguments[1], metadata), **names}
    if is_dataclass(annotation):
        return object_of(annotation)  # type: ignore[arg-type]
    kind: dict[str, Any] = {"enum": list(metadata["choices"])} if "choices" in metadata else {"type": TYPES[annotation]}
    return kind | {name: metadata[name] for name in BOUNDS if name in metadata}


def schema() -> dict[str, Any]:
    """The schema of the whole configuration."""
    whole = object_of(Configuration, "The experiment: data, networks, criteria, comparisons.")
    for name, section in whole["properties"].items():
        section["propertyNames"] = NAMES
        section["minProperties"] = 1
        entry = get_args(next(each.type for each in fields(Configuration) if each.name == name))[1]
        if is_dataclass(entry):
            section["description"] = (entry.__doc__ or "").split("\n", 1)[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def text() -> str:
    """What stands in the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_whole(PATH, text())
