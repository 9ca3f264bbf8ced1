"""The library beside other things: what it needs, its public names and their types."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import scap

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# These packages are not found, as where they are not installed.
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {packages} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
OTHERS = ["snakemake", "dvc", "matplotlib", "torchvision", "sklearn", "jsonschema", "yaml", "rich", "scipy"]
PRUNES = """
import scap, torch
from torch import nn
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))
images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
table = scap.score_network(network, images)
plan = scap.plan_at(table, threshold=0.6)
smaller = scap.prune_network(network, plan, images[:1])
print(sum(p.numel() for p in network.parameters()), sum(p.numel() for p in smaller.parameters()))
"""


def python(code: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments, "-c", code]
    done = subprocess.run(command, cwd=ROOT.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_packages_of_the_workflow_they_are_not_found():
    code = "import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert python(WITHOUT.format(packages=OTHERS) + code.format(names=OTHERS)).strip() == "[]"


def test_a_network_is_pruned_without_the_packages_of_the_workflow():
    before, after = map(int, python(WITHOUT.format(packages=OTHERS) + PRUNES).split())
    assert after < before


def test_to_import_the_library_imports_nothing_else():
    loaded = python("import sys; before = set(sys.modules); import scap; print(*set(sys.modules) - before)").split()
    assert {name.split(".")[0] for name in loaded} - sys.stdlib_module_names == {"scap"}


def test_the_library_requires_what_it_imports():
    """Apart from what there are extras for: figures, data sets, ONNX, the plug-in."""
    extra = {"figures", "data", "export.py", "torch_pruning.py"}
    paths = [path for path in (ROOT / "scap").rglob("*.py") if not extra & set(path.parts)]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"scap"}
    required = {line.split(">=")[0].replace("-", "_") for line in PROJECT["dependencies"]}
    assert outside <= required
    assert required == {"numpy", "pandas", "safetensors", "torch"}


def test_public_names_are_listed():
    assert dir(scap) == scap.__all__ == sorted(scap._PUBLIC)
    assert all(getattr(scap, name).__name__ == name for name in scap.__all__)
    assert scap.__version__ == importlib.metadata.version("scap")


def test_the_types_of_public_names_are_those_of_the_names():
    tree = ast.parse((ROOT / "scap/__init__.py").read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {alias.asname: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imports == {name: f"scap.{module}" for name, module in scap._PUBLIC.items()}
