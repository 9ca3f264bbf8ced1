"""What is written down twice agrees: dependencies, and what the documentation says of the code."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import scap

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHOD = (ROOT / "docs" / "method.md").read_text()
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


def test_the_tree_in_the_readme_names_every_module():
    tree = (ROOT / "README.md").read_text().split("## What is where")[1].split("\n## ")[0]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    assert named == {path.name for folder in ("scap", "workflow") for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}


def test_the_example_in_the_readme_is_that_of_the_package():
    example = (scap.__doc__ or "").split("\n\n")[1].replace("\n    ", "\n").strip()
    assert example in (ROOT / "README.md").read_text()


def test_the_method_names_functions_and_tests_that_exist():
    for name in set(re.findall(r"`(scap\.[\w.]+)`", METHOD)):
        module, *attributes = name.removeprefix("scap.").split(".")
        found = importlib.import_module(f"scap.{module}")
        for attribute in attributes:
            found = getattr(found, attribute)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    missing = [name for name in re.findall(r"`(test_\w+)`", METHOD) if f"def {name}(" not in tests]
    assert not missing


def test_the_code_refers_to_equations_that_exist():
    equations = {int(number) for number in re.findall(r"^    \((\d+)\)", METHOD, re.MULTILINE)}
    assert equations == set(range(1, 14))
    for path in (ROOT / "scap").glob("*.py"):
        for phrase in re.findall(r"equations? (\d+(?:(?:,| and| to) \d+)*)", path.read_text()):
            assert {int(number) for number in re.findall(r"\d+", phrase)} <= equations, path.name
