"""Parts of the documents that are made from code: settings, terms, modules, experiments (workflow/documents.py)."""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path

import yaml

from scap.criterion.settings import AutoencoderSettings, CalibrationSettings, CriterionSettings
from scap.criterion.terms import TERMS, needs
from scap.settings import BOUNDS
from scap.training.settings import TrainingSettings
from workflow.sections import Compensation, Dataset, Grid, Network

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "criterion": CriterionSettings,
    "autoencoder": AutoencoderSettings,
    "calibration": CalibrationSettings,
    "training": TrainingSettings,
    "dataset": Dataset,
    "network": Network,
    "compensation": Compensation,
    "runs": Grid,
}


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def settings(section: str) -> str:
    """The keys of a section of the configuration: meaning, what each may hold, default."""
    found = [each for each in fields(SETTINGS[section]) if "description" in each.metadata]
    return markdown(["key", "meaning", "may be", "default"], [_setting(each) for each in found])


def _setting(each: Field) -> list[str]:
    bounds = [text.format(each.metadata[name]) for name, (_, text) in BOUNDS.items() if name in each.metadata]
    allowed = [f"`{choice}`" for choice in each.metadata.get("choices", ())] or bounds
    return [f"`{each.name}`", each.metadata["description"].replace("|", "\\|"), ", ".join(allowed), _default(each)]


def _default(each: Field) -> str:
    if each.default is None:
        return ""
    if each.default is not MISSING:
        return f"`{each.default}`"
    return "required" if each.default_factory is MISSING else f"`{each.default_factory()}`"


def terms() -> str:
    """The terms of a score, what they need, and what they measure."""
    body = [[f"`{name}`", _first_line(function.__doc__), ", ".join(sorted(needs(name)))] for name, function in TERMS.items()]
    return markdown(["term", "what it measures", "needs"], body)


def modules(folder: str) -> str:
    """The Python files of a folder and what each is for."""
    paths = sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")
    names = {path: str(path.relative_to(ROOT / folder)) for path in paths}
    lines = [f"{name:{max(map(len, names.values())) + 2}}{_purpose(path)}" for path, name in names.items()]
    return "\n".join(["```text", *lines, "```"])


def experiments() -> str:
    """The files of config/experiments, their targets, and what each is for."""
    body = []
    for path in sorted((ROOT / "config/experiments").glob("*.yaml")):
        text = path.read_text()
        targets = ", ".join(f"`{name}`" for name in yaml.safe_load(text).get("targets", {}))
        body.append([f"`{path.name}`", targets, text.splitlines()[0].lstrip("# ")])
    return markdown(["file", "targets", "what it is"], body)


def _purpose(path: Path) -> str:
    return _first_line(ast.get_docstring(ast.parse(path.read_text())))


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0] if doc else ""


MANUAL = (settings, terms, modules, experiments)
