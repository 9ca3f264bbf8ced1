"""What is written down twice agrees: dependencies and versions."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from workflow.environment import environment, installed, needed, pins

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


def test_the_environment_is_that_of_the_lock():
    """environment.yml is made of constraints.txt; `python -m workflow.environment` makes both again."""
    versions = pins((ROOT / "constraints.txt").read_text())
    assert (ROOT / "environment.yml").read_text() == environment(PROJECT, versions)
    assert all(re.fullmatch(r"[\w.]+", version) for version in versions.values())


def test_the_lock_holds_what_is_installed_for_the_tests():
    versions, here = pins((ROOT / "constraints.txt").read_text()), installed()
    needs = needed(PROJECT, "test")
    assert {name: versions.get(name) for name in needs} == {name: here.get(name) for name in needs}


def test_the_lock_meets_the_bounds():
    versions = pins((ROOT / "constraints.txt").read_text())
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name != "scap":
            assert requirement.specifier.contains(versions[requirement.name]), str(requirement)


@pytest.mark.parametrize(
    ("folder", "extras"), [("scap", ("figures", "data", "onnx")), ("workflow", ("figures", "data", "workflow"))]
)
def test_what_is_imported_is_a_dependency(folder, extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    assert {name.replace("_", "-") for name in imported(folder)} <= {Requirement(line).name for line in lines} | {"packaging"}


def test_the_package_holds_every_module_and_says_that_it_is_typed(tmp_path):
    for name in ("scap", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "scap").rglob("*.py")}
    assert shipped == modules | {"scap/py.typed"}


TYPED = {  # a line that uses the library, and what mypy says of it
    "smaller: nn.Module = scap.prune_network(network, {'0': [0]}, torch.zeros(1))": "",
    "scap.prune_networkk": 'Module has no attribute "prune_networkk"',
    "scap.prune_network(network, 3, torch.zeros(1))": 'incompatible type "int"',
    "count: str = scap.prunable_layers(network, torch.zeros(1))": 'expression has type "list[str]"',
}


def test_mypy_finds_the_library_sound_and_others_see_its_types(tmp_path):
    """In one run, as mypy must read PyTorch, pandas and NumPy."""
    lines = ["import scap", "import torch", "from torch import nn", "network = nn.Conv2d(1, 1, 1)", *TYPED]
    (tmp_path / "own.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "scap", str(tmp_path / "own.py")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert not re.findall(r"^scap/.*: error: .*", found, re.MULTILINE), found
    said = dict(re.findall(r"own\.py:(\d+): error: (.*)", found))
    assert len(said) == sum(map(bool, TYPED.values())), found
    for number, (line, error) in enumerate(TYPED.items(), 5):
        assert error in said.get(str(number), ""), line


def test_citation_and_project_give_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
