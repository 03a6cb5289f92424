"""What a plugin's source says of it, read without importing it: first docstring line and constructor options."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from sparsekit.registry import Plugin


@dataclass(frozen=True)
class Option:
    """One constructor argument: its name, its annotation and its default as written, empty where there is none."""

    name: str
    annotation: str
    default: str


def summary_of(plugin: Plugin) -> str:
    """The first line of the class's docstring; empty where the source cannot be read."""
    node = _class_node(plugin)
    text = ast.get_docstring(node) if node else None
    return text.splitlines()[0] if text else ""


def options_of(plugin: Plugin) -> dict[str, Option]:
    """The constructor's options by name; none where the class has no constructor of its own."""
    node = _class_node(plugin)
    for item in node.body if node else ():
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = [*item.args.args[1:], *item.args.kwonlyargs]
            plain = item.args.args[1:]
            defaults = [None] * (len(plain) - len(item.args.defaults)) + [ast.unparse(d) for d in item.args.defaults]
            written = [*defaults, *(ast.unparse(d) if d else None for d in item.args.kw_defaults)]
            return {
                a.arg: Option(a.arg, ast.unparse(a.annotation) if a.annotation else "", d or "")
                for a, d in zip(arguments, written, strict=True)
            }
    return {}


def fault_of(plugin: Plugin) -> str:
    """Why the class cannot be there, by its module's source; empty where it is there or may be."""
    if plugin.flaw:
        return plugin.flaw
    module, _, name = plugin.target.partition(":")
    spec = _locate(module)
    if spec is None:
        return f"there is no module {module!r}"
    if _parsed(module) is None:  # no source, or none that this Python reads
        return ""
    return "" if _resolve(module, name) else f"{module} has no class {name!r}"


def _class_node(plugin: Plugin) -> ast.ClassDef | None:
    module, _, name = plugin.target.partition(":")
    found = None if plugin.flaw else _resolve(module, name)
    return found if isinstance(found, ast.ClassDef) else None


def _resolve(module: str, name: str, depth: int = 0) -> ast.ClassDef | bool:
    """The class's definition, also where other modules pass it on; else whether the name may be there at all."""
    tree = _parsed(module)
    if tree is None or depth > 8:
        return True
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(source, alias.name, depth + 1)
                if alias.name == "*":
                    return True
        bound = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name
        if bound or (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"):
            return True
    return False


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from … import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    spec = _locate(module)
    package = module if spec and spec.submodule_search_locations is not None else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


@lru_cache(maxsize=256)
def _parsed(module: str) -> ast.Module | None:
    """The module's syntax tree; None where there is no readable source."""
    spec = _locate(module)
    try:
        return ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin and spec.has_location else None
    except (OSError, ValueError, SyntaxError):
        return None


def _locate(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where the module is, found without running any of its packages."""
    search: list[str] | None = None
    spec = None
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = _find(name, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return spec


def _find(name: str, search: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, search, None)
        except Exception:  # a broken finder of somebody else's must not break a listing
            continue
        if spec is not None:
            return spec
    return None
