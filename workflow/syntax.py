"""A Python file as its definitions: the name that each binds, its meaning, and what it refers to."""

import ast
import symtable
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from scap.errors import ScapError
from workflow.meaning import Chain, chain_of, is_plain, is_text, meaning_of, origins, statements_of, strip

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
LAZY = "_PUBLIC"  # the table of such names


@dataclass(frozen=True)
class Import:
    """A name that stands for a module (`name` is None) or for what a module calls `name`."""

    bound: str
    module: str
    name: str | None
    loads: str  # `import a.b` binds a, but loads a.b

    @property
    def meaning(self) -> str:
        return f"import {self.module} {self.name}"

    @property
    def chain(self) -> Chain:
        return () if self.name is None else (self.name,)


class Unit:
    """A statement at the top of a module; what it means is worked out when it is asked for."""

    def __init__(self, reader: "_Reader", statement: ast.stmt) -> None:
        self.reader, self.written = reader, statement
        self.defines = isinstance(statement, DEFINITIONS)  # a function or a class

    @cached_property
    def statement(self) -> ast.stmt:
        """Without what does not count."""
        return strip(self.written, self.reader.origins)

    @cached_property
    def meaning(self) -> str:
        return meaning_of(self.statement)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Those inside it."""
        return tuple(self.reader.imports(self.statement))

    @cached_property
    def names(self) -> set[str]:
        """Names that it takes from outside its functions."""
        return _outer_names(self.statement) | {each.bound for each in self.imports}

    @cached_property
    def chains(self) -> frozenset[Chain]:
        """What it refers to: names of its module, or imported inside it."""
        return frozenset(_chains(self.statement, self.names))

    @cached_property
    def decorators(self) -> tuple[Chain, ...]:
        """Those that may keep a list of what they decorate; metaclasses too."""
        makers = [*getattr(self.written, "decorator_list", ()), *(each.value for each in _metaclasses(self.written))]
        return tuple(chain_of(node) for node in makers if not is_plain(node, self.reader.origins))

    @cached_property
    def bases(self) -> tuple[Chain, ...]:
        return tuple(chain_of(node) for node in getattr(self.written, "bases", ()))

    @cached_property
    def writes(self) -> bool:
        """Whether it changes a variable of its module when it is called."""
        return any(_writes(node, self.names, self.reader.variables) for node in ast.walk(self.statement))

    @cached_property
    def hooks(self) -> bool:
        """Whether it is told of its subclasses."""
        nodes = ast.walk(self.statement)
        return any(getattr(node, "name", "") == "__init_subclass__" or _metaclasses(node) for node in nodes)


@dataclass(frozen=True)
class Module:
    """A file: its definitions by name, and the statements that run when it is imported, or when it is run as a script."""

    name: str
    bindings: dict[str, tuple[Unit | Import, ...]] = field(default_factory=dict)
    always: tuple[Unit, ...] = ()
    main: tuple[Unit, ...] = ()
    loads: frozenset[str] = frozenset()
    lazy: dict[str, str] = field(default_factory=dict)  # names that a package loads on first use -> module below it


def read_module(path: Path, name: str, package: str, scripts: bool = False) -> Module:
    """Read a file of a package; `scripts`: its neighbours may be imported by their bare names, as those of a script are.

    Raises ScapError where it cannot be understood.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ScapError(f"{path}: is no Python that can be read ({error})") from error
    reader = _Reader(path, package, scripts, tree)
    bindings: dict[str, list[Unit | Import]] = defaultdict(list)
    always, main, loads = [], [], set()
    for statement in reader.statements:
        unit, bound = Unit(reader, statement), _bound(statement)
        for each in () if unit.defines else unit.imports:
            bindings[each.bound].append(each)
        for each in bound:
            bindings[each].append(unit)
        if isinstance(statement, IMPORTS):
            loads |= {each.loads for each in unit.imports}
        elif not bound:
            (main if _is_main(statement) else always).append(unit)
    lazy = next((ast.literal_eval(node.value) for node in reader.statements if _bound(node) == [LAZY]), {})
    units = {key: tuple(each) for key, each in bindings.items()}
    return Module(name, units, tuple(always), tuple(main), frozenset(loads), lazy)


class _Reader:
    """The statements of a file, and what a unit must know of it."""

    def __init__(self, path: Path, package: str, scripts: bool, tree: ast.Module) -> None:
        self.path, self.package, self.scripts = path, package, scripts
        self.origins = origins(tree)
        self.statements = list(statements_of(tree))
        self.variables = {name for node in self.statements if not isinstance(node, DEFINITIONS) for name in _bound(node)}

    def imports(self, statement: ast.stmt) -> Iterator[Import]:
        """Names that a statement imports, at once or when its functions are called."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    full = self._full(alias.name)
                    first = full.removesuffix(alias.name) + alias.name.split(".")[0]
                    yield Import(alias.asname or alias.name.split(".")[0], full if alias.asname else first, None, full)
            elif isinstance(node, ast.ImportFrom):
                module = self._module(node)
                if any(alias.name == "*" for alias in node.names):
                    raise ScapError(f"{self.path}:{node.lineno}: 'import *' hides what is used; name what is imported")
                for alias in node.names:
                    yield Import(alias.asname or alias.name, module, alias.name, module)
            elif isinstance(node, ast.Call) and chain_of(node)[-1:] == ("import_module",) and is_text(node.args[0]):
                name = self._full(ast.literal_eval(node.args[0]))
                yield Import("", name, None, name)

    def _full(self, name: str) -> str:
        """A module's name seen from the project's folder."""
        neighbour = self.scripts and (self.path.parent / f"{name.split('.')[0]}.py").is_file()
        return f"{self.package}.{name}" if neighbour else name

    def _module(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return self._full(node.module or "")
        parts = [] if self.scripts or not self.package else self.package.split(".")
        above = parts[: max(0, len(parts) - node.level + 1)]
        if not above:
            raise ScapError(f"{self.path}:{node.lineno}: a relative import leads out of its package; name the module in full")
        return ".".join([*above, node.module] if node.module else above)


def _metaclasses(node: ast.AST) -> list[ast.keyword]:
    return [each for each in getattr(node, "keywords", ()) if each.arg == "metaclass"] if isinstance(node, ast.ClassDef) else []


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a definition or an assignment binds; none for other statements, which run whenever the module does."""
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return []
    nodes = [node for target in targets if target is not None for node in ast.walk(target)]
    plain = all(isinstance(node, (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)) for node in nodes)
    return [node.id for node in nodes if isinstance(node, ast.Name)] if plain else []


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def _outer_names(statement: ast.stmt) -> set[str]:
    """Names in a statement that are, or may be, those of its module."""
    names = set()
    tables = [symtable.symtable(ast.unparse(statement), "", "exec")]
    for table in tables:  # grows
        tables += table.get_children()
        names |= {each.get_name() for each in table.get_symbols() if table.get_type() != "function" or each.is_global()}
    return names


def _chains(node: ast.AST, names: set[str]) -> Iterator[Chain]:
    """The chains in a node that start with one of the names, each as long as it is."""
    if not chain_of(node) or isinstance(node, ast.Call):
        inner: Iterable[ast.AST] = ast.iter_child_nodes(node)
    else:
        inner = _arguments(node)
        if chain_of(node)[0] in names:
            yield chain_of(node)
    for child in inner:
        yield from _chains(child, names)


def _arguments(node: ast.AST) -> Iterator[ast.AST]:
    """What the calls within a chain are given."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Call):
            yield from (*node.args, *node.keywords)
        node = node.func if isinstance(node, ast.Call) else node.value


def _writes(node: ast.AST, names: set[str], variables: set[str]) -> bool:
    """Whether a node changes a variable of the module: stores into it, or calls one of its methods."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return bool({*chain_of(node.func)[:1]} & names & variables)
    if isinstance(node, ast.Global):
        return True
    stored = isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del))
    return stored and isinstance(node, (ast.Attribute, ast.Subscript)) and bool({*chain_of(node.value)[:1]} & names & variables)
