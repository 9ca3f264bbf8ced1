"""The meaning of Python code: its syntax without comments, docstrings, descriptions and annotations."""

import ast
from collections.abc import Iterator

Chain = tuple[str, ...]  # a name and the attributes read from it: scap.errors.ScapError is ("scap", "errors", "ScapError")
DESCRIPTIONS = ("doc", "description")  # keys and arguments that describe a field, as a docstring would
# Decorators that keep no list of what they decorate, by the module that they come from or by name.
PLAIN = {"abc", "contextlib", "dataclasses", "enum", "functools", "typing"}
PLAIN_NAMES = {"classmethod", "property", "staticmethod", "torch.enable_grad", "torch.inference_mode", "torch.no_grad"}


def statements_of(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, without lone strings and what is for types alone."""
    waiting = tree.body[::-1]
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.If) and is_for_types(statement):
            waiting += statement.orelse[::-1]
        elif not (isinstance(statement, ast.Expr) and is_text(statement.value)):
            yield statement


def strip(statement: ast.stmt, known: dict[str, str | None]) -> ast.stmt:
    """Remove from a statement what does not count; annotations of fields and of functions with unknown decorators stay."""
    return _Strip(known).visit(statement)


def is_for_types(statement: ast.If) -> bool:
    return chain_of(statement.test)[-1:] == ("TYPE_CHECKING",)


def meaning_of(node: object) -> str:
    """A text of the syntax that is the same for every version of Python and every way to write it."""
    if isinstance(node, list):
        return f"[{','.join(map(meaning_of, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
    return f"{type(node).__name__}({','.join(f'{n}={meaning_of(v)}' for n, v in fields if v is not None and v != [])})"


def chain_of(node: ast.AST | None) -> Chain:
    """Names read one from the other, of a call those of what is called; () where it does not start with a name."""
    if isinstance(node, ast.Call):
        return chain_of(node.func)
    if isinstance(node, ast.Attribute):
        above = chain_of(node.value)
        return (*above, node.attr) if above else ()
    return (node.id,) if isinstance(node, ast.Name) else ()


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def origins(tree: ast.Module) -> dict[str, str | None]:
    """The module that a name is imported from, at the top."""
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module for node in froms for alias in node.names}


def is_plain(decorator: ast.expr, known: dict[str, str | None]) -> bool:
    """Whether a decorator is one that keeps no list of what it decorates."""
    name, *rest = chain_of(decorator) or ("",)
    full = ".".join(filter(None, [known.get(name), name, *rest]))
    return full in PLAIN_NAMES or full.split(".")[0] in PLAIN


class _Strip(ast.NodeTransformer):
    """Removes what does not count: docstrings and other lone strings, annotations of functions, what is for types alone."""

    def __init__(self, known: dict[str, str | None]) -> None:
        self.known, self.fields = known, set[int]()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]  # it has a body
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if is_text(node.value) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        if not is_for_types(node):
            return self.generic_visit(node)
        return [kept for kept in map(self.visit, node.orelse) if kept is not None]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if id(node) in self.fields:
            _undescribe(node)
        elif node.value is not None:
            return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.fields |= {id(statement) for statement in node.body}
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if all(
            is_plain(decorator, self.known) for decorator in node.decorator_list
        ):  # another decorator may read the annotations
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef


def _undescribe(declaration: ast.AnnAssign) -> None:
    """Remove the descriptions of a dataclass's field: what it computes does not depend on them."""
    for node in ast.walk(declaration):
        if (
            isinstance(node, ast.Subscript)
            and chain_of(node.value)[-1:] == ("Annotated",)
            and isinstance(node.slice, ast.Tuple)
        ):
            node.slice.elts = [each for each in node.slice.elts if not is_text(each)]
        elif isinstance(node, ast.Call):
            node.keywords = [each for each in node.keywords if each.arg not in DESCRIPTIONS or not is_text(each.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(k, v) for k, v in zip(node.keys, node.values, strict=True) if not _describes(k, v)]
            node.keys, node.values = [key for key, _ in pairs], [value for _, value in pairs]


def _describes(key: ast.expr | None, value: ast.expr) -> bool:
    return isinstance(key, ast.Constant) and key.value in DESCRIPTIONS and is_text(value)
