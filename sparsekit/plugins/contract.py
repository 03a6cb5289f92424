"""Checks of a plugin's class or function when it is chosen: what can be seen without running it, and without torch.

What it does is checked by the contract kit, `sparsekit.testing`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.errors import UserError
from sparsekit.plugins.registry import Kind, Plugin
from sparsekit.plugins.signatures import NO_OPTIONS

BASES: dict[Kind, type] = {"method": PruningMethod, "merge": MergeStrategy, "task": Task}
RESERVED = ("class_path", "help", "init_args", "name")
"""Option names that the command line or a config file already uses."""


def load(plugin: Plugin) -> type:
    """Import a plugin's class and check it; raises UserError naming the plugin, its distribution and the reason."""
    cls: type = plugin.load()
    check_class(cls, plugin)
    return cls


def load_function(plugin: Plugin, taken: Iterable[str]) -> Callable[..., Any]:
    """Import a data set's function and check it.

    Args:
        plugin: The data set.
        taken: The options of `--data` that every data set has.

    Raises:
        UserError: it cannot be imported, or an option of its own breaks the contract; the message names both.
    """
    function: Callable[..., Any] = plugin.load()
    for fault in function_faults(function, taken):
        raise UserError(f"{plugin}: {plugin.target} {fault}")
    return function


def function_faults(function: Callable[..., Any], taken: Iterable[str]) -> Iterator[str]:
    """The faults of a data set's function, each as the rest of a sentence that begins with the function's name."""
    options = [p for p in inspect.signature(function).parameters.values() if p.name not in NO_OPTIONS]
    return _option_faults(options, {*RESERVED, *taken}, "signature")


def check_class(cls: type, plugin: Plugin) -> None:
    """Raise UserError where a plugin's class cannot be used, naming the plugin, its distribution and the reason."""
    for fault in faults(cls, plugin.kind, listed=bool(plugin.distribution)):
        raise UserError(f"{plugin}: {plugin.target} {fault}")


def defaults(cls: type) -> dict[str, Any]:
    """The default of every option that has one; for a dataclass's field with a factory, a value that it makes."""
    found = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
    made = {f.name: f.default_factory for f in (fields(cls) if is_dataclass(cls) else ())}
    return found | {name: make() for name, make in made.items() if name in found and make is not MISSING}


def faults(cls: type, kind: Kind, listed: bool = True) -> Iterator[str]:
    """The faults of a class, each as the rest of a sentence that begins with the class's name.

    Args:
        cls: The class.
        kind: The kind of plugin that it is to be.
        listed: Whether it is installed, so that a list shows what its docstring says.
    """
    base = BASES[kind]
    if not issubclass(cls, base):
        other = next((k for k, b in BASES.items() if issubclass(cls, b)), None)
        belongs = f"; it is a {other}: name it under sparsekit.{other}s" if other else ""
        yield f"is no subclass of sparsekit.{base.__name__}{belongs}"
        return
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        yield f"lacks the method {', '.join(f'{name}()' for name in missing)}"
    text = (cls.__doc__ or "").strip()
    if listed and (not text or text.startswith(f"{cls.__name__}(")):  # a docstring that `dataclass` generated
        yield "has no docstring; its first line is what `sparsekit plugins list` shows"
    if cls.__init__ is not object.__init__:
        options = list(inspect.signature(cls.__init__).parameters.values())[1:]
        yield from _option_faults(options, RESERVED, "constructor")


def _option_faults(options: Iterable[inspect.Parameter], taken: Collection[str], where: str) -> Iterator[str]:
    for option in options:
        if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
            stars = "*" if option.kind is option.VAR_POSITIONAL else "**"
            yield f"takes {stars}{option.name}; its {where} must name every option"
        elif option.kind is option.POSITIONAL_ONLY:
            yield f"takes its option {option.name!r} by position only; options are given by name"
        elif option.annotation is option.empty:
            yield f"has an option {option.name!r} without a type; annotate it, such as {option.name}: float = 0.1"
        elif option.name in taken:
            yield f"has an option called {option.name!r}, which is reserved; rename it"
