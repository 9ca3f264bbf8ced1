"""The code that a script uses, by its meaning: code_of("baseline.py") changes when a result could, and not for a comment.

A script counts whole. Of the project's modules count the definitions that it refers to by name, those that these refer to,
and so on, and the statements of every imported module that run on import and define nothing. What is looked up by a name that
is known only at run time (a table of functions, getattr) is given as a root of its own. Python and other packages do not count.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from scap.errors import ScapError
from workflow.meaning import Chain, is_text
from workflow.syntax import Import, Module, Unit, read_module

FOLDER = Path(__file__).parents[1]
SCRIPTS = "workflow.scripts"  # these import one another by bare names
# What is nothing to a script. An unpruned network has no plan: what becomes of plans where networks are saved retrains none.
NEVER = dict.fromkeys(("baseline.py", "checkpoint.py"), ("scap.pruning.files:_own_plan",))


@cache
def code_of(script: str, *roots: str, without: tuple[str, ...] = (), folder: Path = FOLDER) -> str:
    """A digest of the code that workflow/scripts/`script` uses, as it is when it is first asked for.

    `roots` ("scap.criterion.terms:rms", or a module) are used too; `without` is not looked into, as a table of functions
    of which the roots name those that are called. Raises ScapError for what is not there, and for `import *`.
    """
    return _digest(_closure(script, roots, without, folder))


@cache
def code_of_function(file: Path, function: str) -> str:
    """The same of a function in a file of one's own, with what it uses of other code that is not installed.

    Files that its code names, such as weights, count by their content. All of the file counts, comments too, where it cannot
    be followed (`import *`). ScapError where it never names the function.
    """
    source, closure = file.read_bytes(), _OwnClosure(file.parent.resolve(), set())
    if function.encode() not in source:
        raise ScapError(f"architecture {file}:{function}: the file has no function {function!r}")
    with suppress(ScapError):
        closure.follow(file.stem, (function,))
        if (file.stem, function) in closure.units:
            return _digest(closure.units | closure.named_files())
    return hashlib.sha256(source).hexdigest()[:16]


def _digest(units: dict[tuple[str, str], list[str]]) -> str:
    text = "\n".join(f"{module} {name} {meaning}" for (module, name), found in sorted(units.items()) for meaning in found)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def definitions_of(script: str, *roots: str, without: tuple[str, ...] = (), folder: Path = FOLDER) -> set[tuple[str, str]]:
    """The definitions that count, as (module, name); what a module runs when it is imported is (module, "")."""
    return set(_closure(script, roots, without, folder))


def _closure(script: str, roots: tuple[str, ...], without: tuple[str, ...], folder: Path) -> dict[tuple[str, str], list[str]]:
    closure = _Closure(folder, {_split(name) for name in (*without, *NEVER.get(script, ()))})
    closure.add_script(f"{SCRIPTS}.{script.removesuffix('.py')}")
    for root in roots:
        module, attribute = _split(root)
        found = closure.module(module)
        if found is None or (attribute and attribute not in found.bindings):
            raise ScapError(f"{script}: its root '{root}' is not there; write MODULE:NAME, or MODULE for all of it")
        closure.follow(module, (attribute,) if attribute else ())
    return closure.units


def _split(root: str) -> tuple[str, str]:
    module, _, name = root.partition(":")
    return module, name


class _Closure:
    """Gathers definitions and what they refer to."""

    def __init__(self, folder: Path, without: set[tuple[str, str]]) -> None:
        self.folder, self.without = folder, without
        self.units: dict[tuple[str, str], list[str]] = {}
        self.waiting: list[tuple[str, Chain]] = []
        self.followed: set[tuple[str, Chain]] = set()
        self.loaded: set[str] = set()

    def module(self, name: str) -> Module | None:
        return find_module(self.folder, name)

    def add_script(self, name: str) -> None:
        """A script with all that it does."""
        module = self.module(name)
        if module is None:
            raise ScapError(f"{self.folder / name.replace('.', '/')}.py: there is no such script")
        self.load(name)
        self.add_units((name, "__main__"), module.main)
        self.follow(name, ())

    def follow(self, name: str, chain: Chain) -> None:
        """Add what a chain of names stands for, read from a module; a module itself stands for all that it defines."""
        self.waiting.append((name, chain))
        while self.waiting:
            step = self.waiting.pop()
            if step not in self.followed:
                self.followed.add(step)
                self.step(*step)

    def step(self, name: str, chain: Chain) -> None:
        """Add one definition and put off what it refers to."""
        module = self.module(name)
        if module is None or self.without & {(name, ""), (name, *chain[:1])}:
            return
        self.load(name)
        if not chain:
            self.waiting += [(name, (key,)) for key in (*module.bindings, *module.lazy)]
        elif found := module.bindings.get(chain[0]):
            self.add_units((name, chain[0]), [unit for unit in found if isinstance(unit, Unit)])
            for each in found:
                if isinstance(each, Import):
                    self.add_import(name, each, chain[1:])
        elif self.module(f"{name}.{chain[0]}"):
            self.waiting.append((f"{name}.{chain[0]}", chain[1:]))
        elif chain[0] in module.lazy:
            self.units[name, "__getattr__"] = [unit.meaning for unit in module.bindings.get("__getattr__", ())]
            self.waiting.append((f"{name}.{module.lazy[chain[0]]}", chain))
        # else a builtin, or what is bound by a statement that counts anyway

    def add_import(self, name: str, found: Import, rest: Chain) -> None:
        """Add an import and put off what is imported."""
        meanings = self.units.setdefault((name, found.bound), [])
        if found.meaning not in meanings:
            meanings.append(found.meaning)
        self.load(found.loads)
        self.waiting.append((found.module, (*found.chain, *rest)))

    def add_units(self, key: tuple[str, str], units: Iterable[Unit]) -> None:
        """Add statements and put off what they refer to."""
        if key in self.units:
            return
        self.units[key] = [unit.meaning for unit in units]
        for unit in units:
            self.waiting += [(key[0], chain) for chain in unit.chains]
            for each in unit.imports:
                self.load(each.loads)
                rests = [chain[1:] for chain in unit.chains if chain[0] == each.bound] if each.bound else [()]
                self.waiting += [(each.module, (*each.chain, *rest)) for rest in rests]

    def load(self, name: str) -> None:
        """Add what runs when a module is imported, its packages first."""
        if name in self.loaded:
            return
        self.loaded.add(name)
        if name.count("."):
            self.load(name.rpartition(".")[0])
        module = self.module(name)
        if module is None or (name, "") in self.without:
            return
        self.add_units((name, ""), module.always)
        for loaded in module.loads:
            self.load(loaded)
        for key, found in module.bindings.items():
            if any(isinstance(unit, Unit) and self.is_noted(name, unit) for unit in found):
                self.waiting.append((name, (key,)))

    def is_noted(self, name: str, unit: Unit) -> bool:
        """Whether a definition may put itself where others find it: by a decorator, a metaclass, a base class."""
        made_by = [list(self.targets(name, chain)) for chain in unit.decorators]
        if any(not found or any(self.writes(*target) for target in found) for found in made_by):
            return True
        bases = [target for chain in unit.bases for target in self.targets(name, chain)]
        return any(base.hooks or self.is_noted(above, base) for above, base, _ in bases)

    def writes(self, name: str, unit: Unit, rest: Chain = (), seen: frozenset[int] = frozenset()) -> bool:
        """Whether a decorator keeps a list of what it decorates; a method, or what is no function, is taken to."""
        if rest or not unit.defines or unit.writes:
            return True
        seen |= {id(unit)}
        calls = [target for chain in unit.chains for target in self.targets(name, chain)]
        return any(called.defines and id(called) not in seen and self.writes(of, called, (), seen) for of, called, _ in calls)

    def targets(self, name: str, chain: Chain) -> Iterator[tuple[str, Unit, Chain]]:
        """The statements that define what a chain stands for, where it is the project's, with their module and what is left."""
        module = self.module(name)
        if module is None or not chain:
            return
        for found in module.bindings.get(chain[0], ()):
            if isinstance(found, Unit):
                yield name, found, chain[1:]
            elif found.module != name:
                yield from self.targets(found.module, (*found.chain, *chain[1:]))
        if chain[0] not in module.bindings:
            yield from self.targets(f"{name}.{chain[0]}", chain[1:])


class _OwnClosure(_Closure):
    """The same of code of one's own: its modules lie beside it, or in a folder where Python finds what is not installed."""

    def __init__(self, folder: Path, without: set[tuple[str, str]]) -> None:
        super().__init__(folder, without)
        self.texts: set[str] = set()

    def module(self, name: str) -> Module | None:
        return find_module(_home(name.partition(".")[0], self.folder), name)

    def add_units(self, key: tuple[str, str], units: Iterable[Unit]) -> None:
        units = list(units)
        self.texts |= {node.value for unit in units for node in ast.walk(unit.statement) if is_text(node)}
        super().add_units(key, units)

    def named_files(self) -> dict[tuple[str, str], list[str]]:
        """Digests of the files that the code names by a text, from its own folder or from that of the run."""
        found: dict[tuple[str, str], list[str]] = {}
        for text in self.texts:
            for path in filter(os.path.isfile, dict.fromkeys([os.path.join(self.folder, text), os.path.abspath(text)])):
                with suppress(OSError), open(path, "rb") as file:
                    found.setdefault(("", text), []).append(hashlib.file_digest(file, "sha256").hexdigest())
        return found


@cache
def _home(package: str, beside: Path) -> Path:
    """The folder in which a package is looked for."""
    if package in sys.stdlib_module_names or find_module(beside, package):
        return beside
    with suppress(ImportError, ValueError):
        found = find_spec(package)
        places = [*(found.submodule_search_locations or ()), found.origin] if found else []
        if places and places[0] and not {"site-packages", "dist-packages"} & {*Path(places[0]).parts}:
            return Path(places[0]).parent
    return beside


@cache
def find_module(folder: Path, name: str) -> Module | None:
    """A module of the project, read once; None for what is not the project's. A folder without __init__.py is an empty one."""
    path, package = folder.joinpath(*name.split(".")), name.rpartition(".")[0]
    for file, above in ((path.with_name(f"{path.name}.py"), package), (path / "__init__.py", name)):
        if file.is_file():
            return read_module(file, name, above, scripts=package == SCRIPTS)
    return Module(name) if path.is_dir() else None
