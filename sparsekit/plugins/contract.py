"""Checks of a plugin's class when it is chosen: what can be seen without running it, and without torch.

What the class does is checked by the contract kit, `sparsekit.testing`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.errors import UserError
from sparsekit.plugins.registry import Kind, Plugin

BASES: dict[Kind, type] = {"method": PruningMethod, "merge": MergeStrategy, "task": Task}
RESERVED = ("class_path", "help", "init_args", "name")
"""Option names that the command line or a config file already uses."""


def load(plugin: Plugin) -> type:
    """Import a plugin's class and check it; raises UserError naming the plugin, its distribution and the reason."""
    cls = plugin.load()
    check_class(cls, plugin)
    return cls


def check_class(cls: type, plugin: Plugin) -> None:
    """Raise UserError where a plugin's class cannot be used, naming the plugin, its distribution and the reason."""
    for fault in faults(cls, plugin.kind):
        raise UserError(f"{plugin}: {plugin.target} {fault}")


def defaults(cls: type) -> dict[str, Any]:
    """The default of every option that has one; for a dataclass's field with a factory, a value that it makes."""
    found = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
    made = {f.name: f.default_factory for f in (fields(cls) if is_dataclass(cls) else ())}
    return found | {name: make() for name, make in made.items() if name in found and make is not MISSING}


def faults(cls: type, kind: Kind) -> Iterator[str]:
    """The faults of a class, each as the rest of a sentence that begins with the class's name."""
    base = BASES[kind]
    if not issubclass(cls, base):
        other = next((k for k, b in BASES.items() if issubclass(cls, b)), None)
        belongs = f"; it is a {other}: name it under sparsekit.{other}s" if other else ""
        yield f"is no subclass of sparsekit.{base.__name__}{belongs}"
        return
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        yield f"lacks the method {', '.join(f'{name}()' for name in missing)}"
    text = (cls.__doc__ or "").strip()
    if not text or text.startswith(f"{cls.__name__}("):  # a docstring that `dataclass` generated
        yield "has no docstring; its first line is what `sparsekit plugins list` shows"
    yield from _option_faults(cls)


def _option_faults(cls: type) -> Iterator[str]:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return
    for option in list(inspect.signature(cls.__init__).parameters.values())[1:]:  # type: ignore[misc]
        if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
            stars = "*" if option.kind is option.VAR_POSITIONAL else "**"
            yield f"takes {stars}{option.name}; its constructor must name every option"
        elif option.kind is option.POSITIONAL_ONLY:
            yield f"takes its option {option.name!r} by position only; options are given by name"
        elif option.annotation is option.empty:
            yield f"has an option {option.name!r} without a type; annotate it, such as {option.name}: float = 0.1"
        elif option.name in RESERVED:
            yield f"has an option called {option.name!r}, which is reserved; rename it"
