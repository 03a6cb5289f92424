"""What a plugin's source says of it, read without importing it: first docstring line and constructor options."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from dataclasses import dataclass
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


def _class_node(plugin: Plugin) -> ast.ClassDef | None:
    module, _, name = plugin.target.partition(":")
    path = _source(module)
    try:
        tree = ast.parse(path.read_text("utf-8")) if path else None
    except (OSError, ValueError, SyntaxError):
        return None
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name] if tree else []
    return nodes[0] if nodes else None


def _source(module: str) -> Path | None:
    """The module's file, found without running any of its packages."""
    search: list[str] | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = _find(name, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _find(name: str, search: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, search, None)
        except Exception:  # a broken finder of somebody else's must not break a listing
            continue
        if spec is not None:
            return spec
    return None
