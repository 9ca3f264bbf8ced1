"""Code counts by its meaning: what changes the digest of a script, and what does not."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scap.errors import ScapError
from workflow.code import code_of, code_of_function, definitions_of, find_module

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "workflow/scripts").glob("*.py"))

# A small project: lib/used.py is what the script calls, lib/unused.py what it never mentions.
PROJECT = {
    "workflow/scripts/run.py": '''
"""Runs."""

from helper import save
from lib.used import total

if __name__ == "__main__":
    save(total([1, 2]))
''',
    "workflow/scripts/helper.py": """
def save(value):
    print(value)


def unused(value):
    return value
""",
    "lib/__init__.py": "",
    "lib/used.py": '''
"""Sums."""

from functools import cache
from math import floor

from lib.deep import LIMIT, Counter

START = 0
OTHER = 1


def total(values: list, start=START):
    """The sum."""
    counter = Counter(start)
    for value in values:  # one by one
        counter.add(step(value))
    return min(counter.value, LIMIT)


@cache
def step(value):
    return floor(value)


def other(value):
    return OTHER + value
''',
    "lib/deep.py": '''
LIMIT = 100
FAR = 3


class Base:
    def add(self, value):
        self.value += value


class Counter(Base):
    """Counts."""

    def __init__(self, value):
        self.value = value

    @property
    def double(self):
        return 2 * self.value
''',
    "lib/unused.py": "def nothing():\n    return 0\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def digest(tmp_path: Path) -> Callable[..., str]:
    """The digest of run.py in a project, some of whose files are replaced or edited (old text, new text)."""
    number = 0

    def of(edits: dict[str, str | tuple[str, str]] | None = None, **options) -> str:
        nonlocal number
        number += 1
        files = dict(PROJECT)
        for name, edit in (edits or {}).items():
            if isinstance(edit, str):
                files[name] = edit
            else:
                assert files[name].count(edit[0]) == 1
                files[name] = files[name].replace(*edit)
        return code_of("run.py", *options.pop("roots", ()), folder=write(tmp_path / str(number), files), **options)

    return of


SAME = {
    "a comment": ("lib/used.py", ("# one by one", "# one after the other")),
    "a comment at the end": ("lib/deep.py", ("return 2 * self.value\n", "return 2 * self.value\n# the end\n")),
    "a docstring": ("lib/used.py", ('"""The sum."""', '"""The sum of all values."""')),
    "a docstring that goes": ("lib/used.py", ('    """The sum."""\n', "")),
    "a module's docstring": ("lib/used.py", ('"""Sums."""', '"""Adds."""')),
    "a class's docstring": ("lib/deep.py", ('"""Counts."""', '"""Counts up."""')),
    "the script's docstring": ("workflow/scripts/run.py", ('"""Runs."""', '"""Runs it."""')),
    "layout": ("lib/used.py", ("min(counter.value, LIMIT)", "min(\n        counter.value,\n        LIMIT,\n    )")),
    "an annotation": ("lib/used.py", ("values: list,", "values: tuple,")),
    "an annotation of a result": ("lib/used.py", ("def step(value):", "def step(value) -> int:")),
    "an unused function": ("lib/used.py", ("OTHER + value", "OTHER - value")),
    "an unused constant": ("lib/used.py", ("OTHER = 1", "OTHER = 2")),
    "an unused constant elsewhere": ("lib/deep.py", ("FAR = 3", "FAR = 4")),
    "an unused helper of a neighbour": ("workflow/scripts/helper.py", ("return value", "return None")),
    "an unused module": ("lib/unused.py", ("return 0", "return 1")),
    "a new function": ("lib/used.py", ("OTHER = 1", "OTHER = 1\n\n\ndef new():\n    return START\n")),
    "an unused import": ("lib/used.py", ("from math import floor", "from math import ceil, floor")),
    "an import for types": (
        "lib/used.py",
        ("START = 0", "import typing\n\nif typing.TYPE_CHECKING:\n    from lib.unused import nothing\n\nSTART = 0"),
    ),
}
OTHER = {
    "a line of a function": ("lib/used.py", ("min(counter.value", "max(counter.value")),
    "a line of a function it calls": ("lib/used.py", ("return floor(value)", "return floor(value) + 1")),
    "what an imported name stands for": ("lib/used.py", ("import floor", "import ceil as floor")),
    "a decorator": ("lib/used.py", ("@cache\n", "")),
    "a constant": ("lib/deep.py", ("LIMIT = 100", "LIMIT = 99")),
    "a constant in a default argument": ("lib/used.py", ("START = 0", "START = 1")),
    "a default argument": ("lib/used.py", ("start=START", "start=2")),
    "a method": ("lib/deep.py", ("2 * self.value", "3 * self.value")),
    "a method of a base class": ("lib/deep.py", ("self.value += value", "self.value -= value")),
    "a string": ("lib/used.py", ("return floor(value)", 'return floor(value or "")')),
    "the helper of a neighbour": ("workflow/scripts/helper.py", ("print(value)", "print(value, value)")),
    "the script": ("workflow/scripts/run.py", ("[1, 2]", "[1, 3]")),
    "a local helper's name": ("lib/used.py", ("def step(value)", "def _step(value)")),
    "a statement that runs on import": ("lib/used.py", ("OTHER = 1", "OTHER = 1\nprint(OTHER)")),
    "a statement of a package": ("lib/__init__.py", "import os\n\nos.umask(0)\n"),
}


@pytest.mark.parametrize("edit", SAME)
def test_what_changes_no_result_changes_no_digest(digest, edit):
    path, change = SAME[edit]
    assert digest({path: change}) == digest()


@pytest.mark.parametrize("edit", OTHER)
def test_what_may_change_a_result_changes_the_digest(digest, edit):
    path, change = OTHER[edit]
    assert digest({path: change}) != digest()


def test_a_definition_may_move_within_its_module(digest):
    constants = "LIMIT = 100\nFAR = 3\n"
    moved = PROJECT["lib/deep.py"].replace(constants, "") + f"\n\n{constants}"
    assert digest({"lib/deep.py": moved}) == digest()


# Ways to reach a function `far` of lib/far.py, and (by its name) no function `near`.
WAYS = {
    "module": "import lib.far\n\n\ndef total(values):\n    return lib.far.far(values)\n",
    "alias": "import lib.far as z\n\n\ndef total(values):\n    return z.far(values)\n",
    "package": "from lib import far\n\n\ndef total(values):\n    return far.far(values)\n",
    "other name": "from lib.far import far as f\n\n\ndef total(values):\n    return [f(v) for v in values]\n",
    "in a function": "def total(values):\n    from lib.far import far\n\n    return far(values)\n",
    "module in a function": "def total(values):\n    import lib.far as z\n\n    return z.far(values)\n",
    "relative": "from .far import far\n\n\ndef total(values):\n    return far(values)\n",
    "relative module": "from . import far\n\n\ndef total(values):\n    return far.far(values)\n",
    "passed on": "from lib.by import far\n\n\ndef total(values):\n    return far(values)\n",
    "try": "try:\n    from lib.far import far\nexcept ImportError:\n    far = None\n\n\ndef total(v):\n    return far(v)\n",
    "default": "from lib.far import far\n\n\ndef total(values, use=far):\n    return use(values)\n",
    "argument of a method": "from lib.far import far\n\n\ndef total(values):\n    return ''.join(map(far, values)).strip()\n",
    "table": "from lib.far import far\n\nTABLE = {'far': far}\n\n\ndef total(values):\n    return TABLE['far'](values)\n",
    "lambda": "from lib.far import far\n\ntotal = lambda values: far(values)\n",
    "base class": "from lib.far import far\n\n\nclass total(far):\n    pass\n",
    "decorator": "from lib.far import far\n\n\n@far\ndef total(values):\n    return values\n",
    "circular": (
        "from lib.circle import f\n\n\ndef total(values):\n    return f(values)\n\n\ndef g(values):\n    return values\n"
    ),
    "nested": (
        "from lib.far import far\n\n\ndef total(values):\n    def f(v):\n        return far(v)\n\n    return f(values)\n"
    ),
    "added to": "from lib.far import far\n\nTABLE = []\nTABLE += [far]\n\n\ndef total(values):\n    return TABLE[0](values)\n",
    "put in": "from lib.far import far\n\nTABLE = {}\nTABLE['far'] = far\n\n\ndef total(v):\n    return TABLE['far'](v)\n",
    "lazy": "from lazy import far\n\n\ndef total(values):\n    return far(values)\n",
    "lazy attribute": "import lazy\n\n\ndef total(values):\n    return lazy.far(values)\n",
}
FAR = "def far(values):\n    return values\n\n\ndef near(values):\n    return values\n"
LAZY = (
    'from importlib import import_module\n\n_PUBLIC = {"far": "inside"}\n\n\n'
    'def __getattr__(name):\n    return getattr(import_module(f"lazy.{_PUBLIC[name]}"), name)\n'
)
AROUND = {
    "lib/far.py": FAR,
    "lazy/__init__.py": LAZY,
    "lazy/inside.py": "from lib.far import far  # and so on\n",
    "lib/by.py": "from lib.far import far\n",
    "lib/circle.py": "from lib.used import g\nfrom lib.far import far\n\n\ndef f(values):\n    return far(g(values))\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_function_is_found_however_it_is_reached(digest, way):
    before = {"lib/used.py": WAYS[way], **AROUND}
    far, near = (
        {**before, "lib/far.py": FAR.replace(f"{name}(values):\n    return", f"{name}(values):\n    return 2 *")}
        for name in ("far", "near")
    )
    assert digest(far) != digest(before)
    assert digest(near) == digest(before)


WHOLE = {
    "handed on": "import lib.far\n\n\ndef total(name):\n    return getattr(lib.far, name)(0)\n",
    "by its text": "from importlib import import_module\n\n\ndef total(name):\n    return import_module('lib.far')\n",
}


@pytest.mark.parametrize("way", WHOLE)
def test_a_module_that_is_handed_on_counts_whole(digest, way):
    before = {"lib/used.py": WHOLE[way], "lib/far.py": FAR}
    assert digest(before) != digest(
        {**before, "lib/far.py": FAR.replace("near(values):\n    return", "near(values):\n    yield")}
    )


REGISTRIES = {
    "decorator": (
        "TABLE = {}\n\n\ndef note(function):\n    TABLE[function.__name__] = function\n    return function\n",
        "@note\ndef near(v):\n    return v\n",
    ),
    "decorator with arguments": (
        "TABLE = {}\n\n\ndef put(name, function):\n    TABLE.update({name: function})\n\n\n"
        "def note(name):\n    def by(function):\n        put(name, function)\n        return function\n\n    return by\n",
        "@note('near')\ndef near(v):\n    return v\n",
    ),
    "method of a table": (
        "class Table(dict):\n    pass\n\n\nTABLE = note = Table()\n",
        "@note.add\ndef near(v):\n    return v\n",
    ),
    "subclasses": (
        "TABLE = []\n\n\nclass note:\n    def __init_subclass__(cls):\n        TABLE.append(cls)\n",
        "class Near(note):\n    def __call__(self, v):\n        return v\n",
    ),
    "another package": (
        "import atexit\n\nTABLE = note = atexit.register\n",
        "import atexit\n\n\n@atexit.register\ndef near(v=0):\n    return v\n",
    ),
}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_what_puts_itself_into_a_table_counts_wherever_it_is_imported(digest, registry):
    table, entry = REGISTRIES[registry]
    used = "import lib.entries\nfrom lib.table import TABLE\n\n\ndef total(values):\n    return TABLE\n"
    before = {"lib/used.py": used, "lib/table.py": table, "lib/entries.py": f"from lib.table import note\n\n\n{entry}"}
    edited = {**before, "lib/entries.py": before["lib/entries.py"].replace("return v", "return -v")}
    assert digest(before) != digest(edited)


def test_a_decorator_that_keeps_no_table_leaves_unused_functions_out(digest):
    wrap = (
        "from functools import wraps\n\n\ndef note(f):\n    @wraps(f)\n    def g(*a):\n        return f(*a)\n\n    return g\n"
    )
    used = "from lib.entries import far\n\n\ndef total(values):\n    return far(values)\n"
    entries = "from lib.table import note\n\n\n@note\ndef far(v):\n    return v\n\n\n@note\ndef near(v):\n    return v\n"
    before = {"lib/used.py": used, "lib/table.py": wrap, "lib/entries.py": entries}
    assert digest(before) == digest(
        {**before, "lib/entries.py": entries.replace("near(v):\n    return v", "near(v):\n    return 0")}
    )
    assert digest(before) != digest(
        {**before, "lib/entries.py": entries.replace("far(v):\n    return v", "far(v):\n    return 0")}
    )


DESCRIBED = """
from dataclasses import dataclass, field
from typing import Annotated


@dataclass
class Settings:
    width: Annotated[float, "Share of the channels."] = 1.0
    \"\"\"Kept channels.\"\"\"
    depth: int = field(default=3, metadata={"description": "Layers.", "minimum": 1})


def total(values):
    return Settings()
"""


@pytest.mark.parametrize("text", ["Share of the channels.", "Kept channels.", "Layers."])
def test_the_description_of_a_setting_changes_no_digest(digest, text):
    assert digest({"lib/used.py": DESCRIBED.replace(text, "Another text.")}) == digest({"lib/used.py": DESCRIBED})


@pytest.mark.parametrize(("old", "new"), [("= 1.0", "= 0.5"), ("default=3", "default=4"), ('"minimum": 1', '"minimum": 2')])
def test_the_value_of_a_setting_changes_the_digest(digest, old, new):
    assert digest({"lib/used.py": DESCRIBED.replace(old, new)}) != digest({"lib/used.py": DESCRIBED})


TABLE = "from lib.far import far, near\n\nTABLE = {'far': far, 'near': near}\n"
BY_NAME = "from lib.table import TABLE\n\n\ndef total(name):\n    return TABLE[name](0)\n"


def test_of_a_table_only_the_functions_that_are_roots_count(digest):
    options = {"roots": ("lib.far:far",), "without": ("lib.table:TABLE",)}
    before = {"lib/used.py": BY_NAME, "lib/table.py": TABLE, "lib/far.py": FAR}
    far = {**before, "lib/far.py": FAR.replace("far(values):\n    return", "far(values):\n    yield")}
    near = {**before, "lib/far.py": FAR.replace("near(values):\n    return", "near(values):\n    yield")}
    assert digest(near) != digest(before)  # the table names both
    assert digest(near, **options) == digest(before, **options)
    assert digest(far, **options) != digest(before, **options)


@pytest.mark.parametrize(
    ("files", "options", "error"),
    [
        ({"lib/used.py": "from lib.deep import *\n\n\ndef total(v):\n    return v\n"}, {}, "used.py:1: 'import \\*' hides"),
        ({"lib/used.py": "def total(v:\n"}, {}, "used.py: is no Python that can be read"),
        ({"lib/used.py": "from ...far import f\n"}, {}, "used.py:1: a relative import leads out of its package"),
        ({"workflow/scripts/helper.py": "from . import x\n"}, {}, "helper.py:1: a relative import leads out"),
        ({}, {"roots": ("lib.used:missing",)}, "run.py: its root 'lib.used:missing' is not there"),
        ({}, {"roots": ("lib.missing",)}, "run.py: its root 'lib.missing' is not there"),
    ],
)
def test_what_cannot_be_followed_is_refused(digest, files, options, error):
    with pytest.raises(ScapError, match=error):
        digest(files, **options)


def test_a_script_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ScapError, match=r"workflow/scripts/gone.py: there is no such script"):
        code_of("gone.py", folder=tmp_path)


def test_definitions_are_told_by_module_and_name(tmp_path):
    found = definitions_of("run.py", folder=write(tmp_path, PROJECT))
    own = {(module, name) for module, name in found if module in ("lib.used", "lib.deep") and name}
    assert own == {
        *(("lib.used", name) for name in ("total", "step", "START", "LIMIT", "Counter", "cache", "floor")),
        *(("lib.deep", name) for name in ("LIMIT", "Base", "Counter")),
    }


def copy(folder: Path) -> Path:
    """The project's own code."""
    for name in ("scap", "workflow"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {script: code_of(script, folder=folder) for script in SCRIPTS}


def test_a_comment_or_docstring_anywhere_changes_no_digest(tmp_path):
    folder = copy(tmp_path / "edited")
    for path in [path for part in ("scap", "workflow") for path in (folder / part).rglob("*.py")]:
        text = path.read_text()
        documented = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        lines = text.split("\n")
        for node in sorted(documented, key=lambda node: -node.body[0].lineno):
            first = node.body[0]
            decorators = getattr(first, "decorator_list", [])
            line = min([first.lineno, *(decorator.lineno for decorator in decorators)]) - 1
            if line > node.lineno - 1:  # not `def f(): ...` in one line
                lines.insert(line, " " * first.col_offset + '"""Another docstring."""')
        path.write_text('"""Another docstring."""\n' + "\n".join(lines) + "\n# a comment\n")
        ast.parse(path.read_text())
    assert digests(folder) == digests(ROOT)


def edited(folder: Path, module: str, function: str) -> set[str]:
    """The scripts whose digest a new line at the end of a module's function changes."""
    path = copy(folder) / module
    text = path.read_text()
    (found,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == function]
    first = found.body[1] if ast.get_docstring(found) else found.body[0]
    lines = text.split("\n")
    lines.insert(first.lineno - 1, "    assert True")
    path.write_text("\n".join(lines))
    before = digests(ROOT)
    return {script for script, digest in digests(folder).items() if digest != before[script]}


def test_the_surgery_changed_makes_no_baseline_and_no_activations_again(tmp_path):
    changed = edited(tmp_path, "scap/pruning/surgery.py", "cut_network")
    assert "prune.py" in changed
    assert not changed & {"baseline.py", "activations.py", "spectrum.py", "autoencoder.py", "scores.py"}


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("scap/pruning/files.py", "_check_widths"),
        ("scap/pruning/history.py", "compose"),
        ("scap/models/layers.py", "conv_layers"),
    ],
)
def test_plans_treated_otherwise_retrain_no_baseline(tmp_path, module, function):
    changed = edited(tmp_path, module, function)
    assert "prune.py" in changed
    assert not changed & {"baseline.py", "checkpoint.py"}


def test_another_transform_makes_spectra_again_and_no_baseline(tmp_path):
    changed = edited(tmp_path, "scap/criterion/spectra.py", "write_spectra")
    assert "spectrum.py" in changed
    assert not changed & {"baseline.py", "activations.py", "finetune.py"}


def test_a_digest_does_not_depend_on_the_order_of_sets():
    """In which a run of Python goes through a set of names is drawn anew each time."""
    code = "from workflow.code import code_of; print(code_of('autoencoder.py'))"
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True,
                           check=True) for seed in ("1", "2")]  # fmt: skip
    assert {run.stdout.strip() for run in runs} == {code_of("autoencoder.py")}


NETS = {
    "nets.py": """
from torch import nn
from blocks import block

WIDTH = 4

def make(classes):
    return nn.Sequential(block(WIDTH))
""",
    "blocks.py": """
from torch.nn import Conv2d

def block(width):
    return Conv2d(3, width, 3)

def other():
    return 1
""",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("nets.py", "    return", "    # a comment\n    return", False),
        ("blocks.py", "return 1", "return 2", False),
        ("nets.py", "WIDTH = 4", "WIDTH = 8", True),
        ("blocks.py", "width, 3", "width, 1", True),
        ("nets.py", "from torch import nn", "from torch import *", True),  # cannot be followed: all of the file counts
        ("nets.py", "def make(", "from blocks import other as m\nglobals()['make'] = m\ndef unmade(", True),
    ],
)
def test_a_function_of_ones_own_counts_with_what_it_uses_beside_it(tmp_path, file, old, new, counts):
    digests = []
    for name, text in NETS.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):
        for cached in (code_of_function, find_module):
            cached.cache_clear()
        digests.append(code_of_function(tmp_path / "nets.py", "make"))
        (tmp_path / file).write_text(NETS[file].replace(old, new))
    assert (digests[0] != digests[1]) == counts


PACKAGE = {
    "mynets/__init__.py": "",
    "mynets/net.py": """
import json
from pathlib import Path
from mynets.blocks import block

def make(classes):
    sizes = json.loads(Path(__file__).with_name("sizes.json").read_text())
    return block(sizes, "weights/start.pt")

def other():
    return "unused.txt"
""",
    "mynets/blocks.py": "def block(sizes, weights):\n    return sizes\n",
    "mynets/sizes.json": "{}",
    "weights/start.pt": "1",
    "unused.txt": "1",
}


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("mynets/blocks.py", True),  # by the name that it has from the folder of the run
        ("mynets/sizes.json", True),
        ("weights/start.pt", True),
        ("unused.txt", False),
    ],
)
def test_a_function_counts_with_code_that_is_not_installed_and_files_that_it_names(tmp_path, monkeypatch, file, counts):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    digests = []
    for _ in range(2):
        for cached in (code_of_function, find_module):
            cached.cache_clear()
        digests.append(code_of_function(Path("mynets/net.py"), "make"))
        (tmp_path / file).write_text(
            PACKAGE[file].replace("1", "2").replace("{}", "[]").replace("return sizes", "return weights")
        )
    assert (digests[0] != digests[1]) == counts


def test_a_function_that_its_file_never_names_is_named(tmp_path):
    (tmp_path / "nets.py").write_text(NETS["nets.py"])
    with pytest.raises(ScapError, match=r"architecture .*nets\.py:mine: the file has no function 'mine'"):
        code_of_function(tmp_path / "nets.py", "mine")
