"""Digests of code: which `sams` modules a job runs, and what each of them computes."""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

from sams.runtime.digests import remembered
from sams.runtime.files import sha256_of_text
from sams.runtime.source import PACKAGE, SOURCE

# Packages and modules that are in no digest: what they decide is in the recipe, or is only reported.
# The tables only name modules; `sams.study.code` adds those of a job's loss, selector or benchmark to its code.
NOT_HASHED = (
    "sams.runtime",
    "sams.study",
    "sams.tracking",
    "sams.losses.table",
    "sams.scheduling.selectors.table",
    "sams.scoring.table",
)


def code_of(module: str, *more: str) -> dict[str, str]:
    """Return the modules that an entry point runs, each with a digest of its code, twelve hex digits.

    Args:
        module: the entry point, or `module:name` for one function or object of a module and what it uses of it.
        more: modules that it imports by name, such as that of a loss or of a selector in another package.
    """
    return {name: _code(name).digest for name in sorted(imported_modules(module, *more))}


def code_digest(module: str, *more: str) -> str:
    """Return one digest for all modules of `code_of`, twelve hex digits."""
    return digest_of_code(code_of(module, *more))


def digest_of_code(code: dict[str, str]) -> str:
    """Return one digest for modules with their digests, twelve hex digits."""
    return _digest("\n".join(f"{name} {digest}" for name, digest in sorted(code.items())))


def imported_modules(module: str, *more: str) -> set[str]:
    """Return these modules and all that they import of `sams` or their own project, also inside functions.

    The project of an installed selector is its package; that of a selector in a file is the folder of the file.
    Packages in `NOT_HASHED` are left out.
    """
    reached: set[str] = set()
    waiting = [module, *more]
    while waiting:
        name = waiting.pop()
        if name in reached or is_not_hashed(name):
            continue
        reached.add(name)
        waiting += [found for found in (_resolved(other, name) for other in _code(name).imports) if found]
    return reached - {"sams"}


def is_not_hashed(name: str) -> bool:
    """Return whether a module belongs to a package in `NOT_HASHED`."""
    return any(name == package or name.startswith(f"{package}.") for package in NOT_HASHED)


class _Code(NamedTuple):
    digest: str
    imports: list[str]


@functools.cache  # the digests of all rules share most modules
def _code(name: str) -> _Code:
    """Return the digest of a module's code, and the `sams` modules that it imports."""
    part = name.partition(":")[2]
    return _Code(
        *remembered(f"code {part} by {_version()}", _file(name), functools.partial(_read, part=part))
    )


@functools.cache
def _version() -> str:
    return _digest(Path(__file__).read_text(encoding="utf-8"))


def _read(file: Path, part: str) -> tuple[str, list[str]]:
    tree = _RemoveNotHashed().visit(ast.parse(file.read_text(encoding="utf-8")))
    if part:
        _keep_used(tree, part)
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            dot = "" if base.endswith(".") else "."
            imports += [f"{base}:{alias.name}" for alias in node.names]
            imports += [f"{base}{dot}{alias.name}" for alias in node.names]
    # Unlike `ast.dump`, `ast.unparse` gives the same text on every Python that the project supports.
    return _digest(ast.unparse(tree)), imports


def _keep_used(tree: ast.Module, part: str) -> None:
    """Remove the statements of a module that define nothing that a name of it uses, directly or not."""
    defined = [(node, _names_of(node)) for node in tree.body]
    used, waiting = {part}, [part]
    while waiting:
        name = waiting.pop()
        for node, names in defined:
            if name in names and not isinstance(node, ast.Import | ast.ImportFrom):
                new = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} - used
                used |= new
                waiting += new
    tree.body = [node for node, names in defined if names & used]
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if _bound(alias) in used]


def _names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a module defines."""
    match node:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {_bound(alias) for alias in names}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case _:
            return {
                each.id
                for each in ast.walk(node)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


class _RemoveNotHashed(ast.NodeTransformer):
    """Remove code that cannot change a result from a module.

    Removes docstrings, log calls, annotations (except those of a class body, which may be fields), blocks for the
    type checker, the message of a `UserError`, and imports of names that only these use.
    """

    _around: ast.AST | None = None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text or _is_log_call(node.value) else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if _called(node.value) == "logging.getLogger" else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None if [alias.name for alias in node.names] == ["logging"] else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        name = node.module or ""
        return None if name in ("__future__", "typing", "collections.abc") or is_not_hashed(name) else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(each) for each in node.orelse]
        super().generic_visit(node)
        if node.body or node.orelse:
            node.body = node.body or [ast.Pass()]
            return node
        # A condition with a call may have an effect.
        calls = any(isinstance(each, ast.Call | ast.NamedExpr | ast.Await) for each in ast.walk(node.test))
        return ast.Expr(node.test) if calls else None

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if _called(node.exc) == "UserError":
            return ast.Raise(ast.Name("UserError", ast.Load()), None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._inside(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if isinstance(self._around, ast.ClassDef):
            return node
        return node.value and ast.Assign([node.target], node.value, lineno=node.lineno)

    def _inside(self, node: ast.AST) -> ast.AST:
        around, self._around = self._around, node
        self.generic_visit(node)
        self._around = around
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.stmt | ast.ExceptHandler) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[union-attr]
        return node


def _is_log_call(node: ast.AST) -> bool:
    return _called(node).partition(".")[0] in ("log", "logger")


def _called(node: ast.AST | None) -> str:
    """Return the dotted name of the function of a call; empty for any other node."""
    parts, name = [], node.func if isinstance(node, ast.Call) else None
    while isinstance(name, ast.Attribute):
        parts.append(name.attr)
        name = name.value
    return ".".join(reversed([*parts, name.id])) if isinstance(name, ast.Name) else ""


def _digest(text: str) -> str:
    return sha256_of_text(text)[:12]


def _resolved(imported: str, by: str) -> str | None:
    """Return the name of a module that a module imports; None if it is of another project, or no module.

    What is imported `from` the file of a benchmark is `module:name`.
    """
    by = by.partition(":")[0]
    imported, _, part = imported.partition(":")
    if imported.startswith("."):
        package = by if _file(by).name == "__init__.py" else by.rpartition(".")[0]
        try:
            imported = importlib.util.resolve_name(imported, package)
        except ImportError:
            return None
    top, own = imported.partition(".")[0], by.partition(".")[0]
    if top not in ("sams", own) and (own == "sams" or _base(own) is None or _base(top) != _base(own)):
        return None
    if top not in ("sams", own) and {"site-packages", "dist-packages"} & set((_base(own) or Path()).parts):
        return None
    if not _file(imported).is_file():
        return None
    return f"{imported}:{part}" if part and _has_parts(imported) else imported


@functools.cache
def _has_parts(name: str) -> bool:
    """Return whether a module is the file of a benchmark, of which each stage uses a part."""
    return "\nBENCHMARK = " in _file(name).read_text(encoding="utf-8")


@functools.cache
def _base(top: str) -> Path | None:
    """Return the folder that has a top-level module; None if there is no such module in a file."""
    try:
        origin = getattr(importlib.util.find_spec(top), "origin", None)
    except (ImportError, ValueError):
        return None
    if origin is None or not Path(origin).is_file():
        return None
    file = Path(origin)
    return file.parent.parent if file.name == "__init__.py" else file.parent


def _path(name: str) -> Path:
    name = name.partition(":")[0]
    top = name.partition(".")[0]
    base = {"sams": PACKAGE.parent, "workflow": SOURCE}.get(top) or _base(top) or Path(top)
    return base.joinpath(*name.split("."))


def _file(name: str) -> Path:
    package = _path(name) / "__init__.py"
    return package if package.is_file() else _path(name).with_suffix(".py")
