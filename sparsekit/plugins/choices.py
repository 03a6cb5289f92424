"""Allocations, schedules and export formats by name: built-in, installed, `module:name`, or brought from Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from sparsekit.errors import UserError, nearest
from sparsekit.plugins.objects import find_object, is_brought, is_object
from sparsekit.plugins.registry import BUILT_IN, Kind, discover, find, option_of

ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "allocation": ("shapes", "sparsity", "available", "least"),
    "schedule": ("done", "low"),
}
"""What a function of a kind is called with, by position."""


def known_names(kind: Kind) -> list[str]:
    """The names of a kind that can be chosen, the built-in ones first."""
    return [*BUILT_IN[kind], *(name for name in discover().of(kind) if ":" not in name)]


def check_choice(kind: Kind, name: str, option: str) -> None:
    """Raise UserError, with the option, where a name stands for nothing, or for what cannot be used."""
    if name not in known_names(kind) and not is_object(name):
        if any((plugin.kind, plugin.name) == (kind, name) for plugin in discover().plugins):
            find(kind, name)  # says what is wrong with its entry point
        names = known_names(kind)
        what = "FORMAT" if kind == "format" else "function"
        raise UserError(
            f"{option} is {name!r}; choose from {', '.join(names)}, or module:{what}.{nearest(name, names)}"
        )
    try:
        if kind in ARGUMENTS:
            find_choice(kind, name)
        elif name not in BUILT_IN[kind] and not is_brought(option_of(kind), name):
            find(kind, name)  # it is imported when it is used, as it imports torch
    except UserError as error:
        raise UserError(str(error).replace(option_of(kind), option)) from error


def find_choice(kind: Kind, name: str) -> Any:
    """The function or record behind a name; None for a built-in one.

    Raises:
        UserError: there is none, it cannot be imported, or it cannot be called as its kind is.
    """
    if name in BUILT_IN[kind]:
        return None
    brought = is_brought(option_of(kind), name)
    plugin = None if brought else find(kind, name)
    found = plugin.load() if plugin else find_object(option_of(kind), name)
    for fault in call_faults(kind, found) if kind in ARGUMENTS else ():
        raise UserError(f"{described(kind, name)}: {fault}")
    return found


def described(kind: Kind, name: str) -> str:
    """A chosen plugin for messages, such as `allocation 'mine' of sparsekit-mine 0.1.0`."""
    return f"{option_of(kind)} {name}" if is_object(name) else str(find(kind, name))


def call_faults(kind: Kind, function: Callable[..., Any]) -> Iterator[str]:
    """Why a function cannot be called as its kind is, as a sentence; nothing where it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions that are written in C
        return
    try:
        signature.bind(*ARGUMENTS[kind])
    except TypeError as error:
        yield f"it takes {signature}, but is called with ({', '.join(ARGUMENTS[kind])}): {error}"
