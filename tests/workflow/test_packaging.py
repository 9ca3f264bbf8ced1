"""What is written down twice agrees: dependencies and versions."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"sklearn": "scikit-learn", "torch_pruning": "torch-pruning", "yaml": "pyyaml"}  # where import and package differ


def imported(folder: str) -> set[str]:
    """Top-level names that the Python files of a folder import from outside the standard library and this project."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    own = {"scap", "workflow"} | {path.stem for path in (ROOT / folder).rglob("*.py")}
    return {MODULES.get(name, name) for name in {name.split(".")[0] for name in names} - own - sys.stdlib_module_names}


def test_environment_and_project_pin_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(PROJECT["dependencies"])
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+", pin) for pin in pip)
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")


@pytest.mark.parametrize("folder", ["scap", "workflow"])
def test_what_is_imported_is_a_dependency(folder):
    assert imported(folder) <= {pin.split("==")[0] for pin in PROJECT["dependencies"]}


def test_citation_and_project_give_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
