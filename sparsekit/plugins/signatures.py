"""A plugin's summary and options, read from its source without importing it."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import inspect
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sparsekit.plugins.registry import GROUP_OF_OPTIONS, GROUPS, NOUNS, Plugin

NO_OPTIONS = ("root", "name")
"""Arguments of a data set's function that are no options of its own: `--data.root`, and what is behind `torch/`."""
_DEPTH = 8
"""Maximum number of imports or base classes to follow."""


@dataclass(frozen=True)
class Option:
    """A constructor argument: its name, and its annotation and default as source text; empty if there is none."""

    name: str
    annotation: str
    default: str


def summary_of(plugin: Plugin) -> str:
    """The first line of the docstring of the class, function or module; empty if the source cannot be read.

    A format's is the text below its assignment, or else its module's docstring.
    """
    module, _, name = plugin.target.partition(":")
    if plugin.kind == "format":
        return _about_value(module, name).partition("\n")[0]
    found = _definition_of(plugin)
    node = found.node if found else _parsed(module) if not name else None
    text = ast.get_docstring(node) if node else None
    return text.splitlines()[0] if text else ""


def options_of(plugin: Plugin) -> dict[str, Option]:
    """The options of the class's own or inherited constructor, or of the function, by name; empty if none is found.

    Where the source does not say what the class inherits, they are those of the class itself, once it is imported.
    Kinds that are called in one way have none.
    """
    if plugin.kind not in (*GROUPS, *GROUP_OF_OPTIONS):
        return {}
    try:
        found = _definition_of(plugin)
        return (_arguments(found) if found else None) or {}
    except _Unclear:
        return _signature(plugin)


def unclear(plugin: Plugin) -> bool:
    """Whether the source does not say which options the class inherits, as from a base that is loaded at run time."""
    try:
        found = _definition_of(plugin)
        if found:
            _arguments(found)
    except _Unclear:
        return True
    return False


def fault_of(plugin: Plugin) -> str:
    """Why the plugin cannot be loaded, as far as its module's source shows; empty if it may be loadable."""
    if plugin.flaw:
        return plugin.flaw
    module, _, name = plugin.target.partition(":")
    if _locate(module) is None:
        return f"there is no module {module!r}"
    if name and not _resolve(module, name, _node_of(plugin)):
        return f"{module} has no {NOUNS.get(plugin.kind, 'class')} {name!r}"
    untyped = next((option.name for option in options_of(plugin).values() if not option.annotation), None)
    return f"{name} has an option {untyped!r} without a type" if untyped else ""


@dataclass(frozen=True)
class _Definition:
    """The definition of a class or a function, and its module."""

    module: str
    node: ast.ClassDef | ast.FunctionDef


class _Unclear(Exception):
    """A base class cannot be found in the source."""


def _arguments(found: _Definition, depth: int = 0) -> dict[str, Option] | None:
    """The options of a function, or of a class's own or inherited constructor; None without one; raises _Unclear."""
    if isinstance(found.node, ast.FunctionDef):
        options = _options(found.module, found.node.args)
        return {name: option for name, option in options.items() if name not in NO_OPTIONS}
    for item in found.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return dict(list(_options(found.module, item.args).items())[1:])
    if depth > _DEPTH:
        raise _Unclear
    own = None
    if any("dataclass" in ast.unparse(decorator) for decorator in found.node.decorator_list):
        own = _fields(found.module, found.node)
    for base in found.node.bases:
        parent = _base(found.module, base)
        inherited = _arguments(parent, depth + 1) if parent else None
        if own is not None:
            own = {**(inherited or {}), **own}
        elif inherited is not None:
            return inherited
    return own


def _base(module: str, node: ast.expr) -> _Definition | None:
    """The definition of a base class; None for Python's own; raises _Unclear if the source does not give it."""
    node = node.value if isinstance(node, ast.Subscript) else node
    name = ast.unparse(node)
    if isinstance(node, ast.Name) and hasattr(builtins, name):
        return None
    found = _resolve(module, name) if isinstance(node, ast.Name) else False
    tree = _parsed(module) if isinstance(node, ast.Attribute) else None
    for item in _naming(tree) if tree else ():
        if isinstance(item, (ast.Import, ast.ImportFrom)):
            within = f"{_absolute(module, item)}." if isinstance(item, ast.ImportFrom) else ""
            for alias in item.names:
                rest = name.removeprefix(f"{alias.asname or alias.name}.")
                if rest != name and "." not in rest:
                    found = _resolve(f"{within}{alias.name}", rest)
    if not isinstance(found, _Definition):
        raise _Unclear
    return found


def _signature(plugin: Plugin) -> dict[str, Option]:
    """The options of a class that is imported already; empty if it is not."""
    module, _, name = plugin.target.partition(":")
    cls = getattr(sys.modules.get(module), name, None)
    if not isinstance(cls, type) or cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    return {
        p.name: Option(
            p.name,
            "" if p.annotation is p.empty else p.annotation if isinstance(p.annotation, str)
            else inspect.formatannotation(p.annotation),
            "" if p.default is p.empty else repr(p.default),
        )
        for p in inspect.signature(cls).parameters.values()
    }  # fmt: skip


def _options(module: str, arguments: ast.arguments) -> dict[str, Option]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + [ast.unparse(d) for d in arguments.defaults]
    written = [*defaults, *(ast.unparse(d) if d else None for d in arguments.kw_defaults)]
    return {
        a.arg: Option(a.arg, _annotation(module, a.annotation) if a.annotation else "", d or "")
        for a, d in zip([*plain, *arguments.kwonlyargs], written, strict=True)
    }


def _fields(module: str, node: ast.ClassDef) -> dict[str, Option]:
    """The fields of a dataclass as options."""
    return {
        item.target.id: Option(
            item.target.id, _annotation(module, item.annotation), ast.unparse(item.value) if item.value else ""
        )
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "ClassVar" not in ast.unparse(item.annotation)
    }


def _annotation(module: str, node: ast.expr, depth: int = 0) -> str:
    """An annotation as source text; a name that is assigned a Literal is replaced by that Literal."""
    tree = _parsed(module) if isinstance(node, ast.Name) and depth <= _DEPTH else None
    for item in tree.body if tree else ():
        if isinstance(item, ast.Assign) and [ast.unparse(target) for target in item.targets] == [ast.unparse(node)]:
            value = ast.unparse(item.value)
            return value if re.match(r"(\w+\.)?Literal\[", value) else ast.unparse(node)
        if not isinstance(item, ast.ImportFrom):
            continue
        for alias in item.names:
            if (alias.asname or alias.name) == ast.unparse(node):
                written = _annotation(_absolute(module, item), ast.Name(alias.name), depth + 1)
                return ast.unparse(node) if written == alias.name else written
    return ast.unparse(node)


def _about_value(module: str, name: str, depth: int = 0) -> str:
    """The text below a module's assignment of a value, or else the docstring of the module that assigns it."""
    tree = _parsed(module)
    body = tree.body if tree and depth <= _DEPTH else []
    for item, below in zip(body, [*body[1:], None], strict=False):
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            text = getattr(getattr(below, "value", None), "value", None) if isinstance(below, ast.Expr) else None
            return inspect.cleandoc(text) if isinstance(text, str) else (tree and ast.get_docstring(tree)) or ""
        if not isinstance(item, ast.ImportFrom):
            continue
        for alias in item.names:
            if (alias.asname or alias.name) == name:
                return _about_value(_absolute(module, item), alias.name, depth + 1)
    return ""


def _definition_of(plugin: Plugin) -> _Definition | None:
    module, _, name = plugin.target.partition(":")
    found = None if plugin.flaw else _resolve(module, name, _node_of(plugin))
    return found if isinstance(found, _Definition) else None


def _node_of(plugin: Plugin) -> type[ast.ClassDef] | type[ast.FunctionDef]:
    return ast.ClassDef if plugin.kind in GROUPS else ast.FunctionDef


def _resolve(
    module: str, name: str, wanted: type[ast.ClassDef] | type[ast.FunctionDef] = ast.ClassDef, depth: int = 0
) -> _Definition | bool:
    """Find a definition, following imports; if it is not found, whether the module may define the name."""
    tree = _parsed(module)
    if tree is None or depth > _DEPTH:  # without readable source the class may exist
        return True
    for node in _naming(tree):
        if isinstance(node, wanted) and node.name == name:
            return _Definition(module, node)
    for node in _naming(tree):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(source, alias.name, wanted, depth + 1)
                if alias.name == "*":
                    return True
        bound = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name
        if bound or (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"):
            return True
    return False


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of the module in a `from … import`."""
    if not node.level:
        return node.module or ""
    spec = _locate(module)
    package = module if spec and spec.submodule_search_locations is not None else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _parsed(module: str) -> ast.Module | None:
    """The module's syntax tree; None without readable source."""
    spec = _locate(module)
    origin = spec.origin if spec and spec.has_location else None
    origin = origin or getattr(getattr(spec, "loader_state", None), "filename", None)  # Python's frozen modules, as abc
    return _parse(origin) if origin else None


@lru_cache(maxsize=256)
def _naming(tree: ast.Module) -> tuple[ast.AST, ...]:
    """The nodes of a syntax tree that give something a name, wherever they stand."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Name)
    return tuple(node for node in ast.walk(tree) if isinstance(node, kinds))


@lru_cache(maxsize=256)
def _parse(path: str) -> ast.Module | None:
    try:
        return ast.parse(Path(path).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None


def _locate(module: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module without importing its packages; None if it does not exist."""
    try:
        return _located(module, tuple(sys.path))
    except ModuleNotFoundError:
        return None


@lru_cache(maxsize=1024)
def _located(module: str, path: tuple[str, ...]) -> importlib.machinery.ModuleSpec:
    """The same, kept for one `sys.path`; raises ModuleNotFoundError, which is not kept."""
    package = module.rpartition(".")[0]
    spec = _find(module, list(_located(package, path).submodule_search_locations or []) if package else None)
    if spec is None:
        raise ModuleNotFoundError(module)
    return spec


def _find(name: str, search: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, search, None)
        except Exception:  # a third-party finder may fail
            continue
        if spec is not None:
            return spec
    return None
