"""The packages of the library: imports run one way, and importing one costs little."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A package, or a module that is named here, may import from those before it, and from itself.
BASE = ("errors", "published", "checks", "settings", "reading", "writing", "tensors", "models.names", "data.sources")
ORDER = (*BASE, "data.torchvision_cure", "models", "data", "pruning", "training", "criterion", "torch_pruning")
ALONE = {"figures": ("errors", "published", "reading", "writing", "models.names")}  # what figures may import beside themselves


def modules() -> dict[str, Path]:
    """Every module of the library by its name below `scap`."""
    paths = (ROOT / "scap").rglob("*.py")
    names = {path: ".".join(path.relative_to(ROOT / "scap").with_suffix("").parts) for path in paths}
    return {name: path for path, name in names.items()}


def imports(path: Path) -> set[str]:
    """What a module imports of the library, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("scap.") for name in found if name.startswith("scap.")} & modules().keys()


def package(module: str) -> str:
    return module if module in ORDER else module.split(".")[0]


INNER = sorted(name for name in modules() if not name.endswith("__init__"))


@pytest.mark.parametrize("module", INNER)
def test_imports_run_one_way(module):
    own = package(module)
    for imported in imports(modules()[module]):
        if own in ALONE:
            assert package(imported) == own or imported in ALONE[own], f"{module} imports {imported}"
        else:
            assert ORDER.index(package(imported)) <= ORDER.index(own), f"{module} imports {imported}"


@pytest.mark.parametrize("module", INNER)
def test_the_library_knows_nothing_of_the_workflow(module):
    tree = ast.parse(modules()[module].read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.split(".")[0] in ("workflow", "snakemake", "dvc")]


def test_init_files_of_packages_are_empty():
    """So that importing one module imports no other, and an edit reruns what uses it."""
    packages = [path for name, path in modules().items() if name.endswith(".__init__")]
    assert packages
    assert [path for path in packages if path.read_text()] == []


def test_every_module_belongs_to_a_package():
    assert {package(name) for name in INNER} == {*ORDER, *ALONE}
