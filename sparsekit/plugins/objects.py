"""Models, data and tasks by name: those that a Python call brings while it runs, else `module:name`, imported."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from types import CodeType, FunctionType
from typing import Any

from sparsekit.errors import UserError, first_line

_BROUGHT: ContextVar[Mapping[str, Any]] = ContextVar("brought", default={})  # noqa: B039  (it is never changed)


@contextmanager
def brought(objects: Mapping[str, Any]) -> Iterator[None]:
    """Let names stand for these objects, by option and name as `--model.name module:name`, in this context."""
    token = _BROUGHT.set({**_BROUGHT.get(), **objects})
    try:
        yield
    finally:
        _BROUGHT.reset(token)


def is_object(name: str | None) -> bool:
    """Whether a name is `module:name`, and no address such as `hf_hub:name`."""
    return bool(name and re.fullmatch(r"(?!hf_hub:)[^\W\d][\w.<>]*:[\w.<>]+", name))


def needs_object(name: str | None) -> bool:
    """Whether a `module:name` cannot be imported, as it stood in a main file or inside of a function."""
    module, _, attribute = (name or "").partition(":")
    return is_object(name) and (module == "__main__" or "<" in attribute)


def path_of(thing: Any) -> str:
    """`module:name` of a class or function, or of an object's class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def record_of(thing: Any) -> str:
    """`module:name` of what can be imported under it; behind that a fingerprint of what only Python can give again."""
    path = path_of(thing)
    module, _, name = path.partition(":")
    try:
        if module != "__main__" and reduce(getattr, name.split("."), sys.modules[module]) is thing:
            return path
    except (AttributeError, KeyError):
        pass
    return f"{path}.<{hashlib.sha256(repr(_made_of(thing)).encode()).hexdigest()[:8]}>"


def _made_of(thing: Any) -> Any:
    """What a function or an object does, as plain data: code, defaults, what it closes over, attributes."""
    if isinstance(thing, CodeType):
        return thing.co_code, thing.co_names, [_made_of(const) for const in thing.co_consts]
    if isinstance(thing, FunctionType):
        closed = [cell.cell_contents for cell in thing.__closure__ or ()]
        return _made_of(thing.__code__), [_made_of(part) for part in (thing.__defaults__, thing.__kwdefaults__, closed)]
    if isinstance(thing, (list, tuple)):
        return [_made_of(item) for item in thing]
    if isinstance(thing, dict):
        return [(str(key), _made_of(value)) for key, value in thing.items()]
    if isinstance(thing, partial):
        return [_made_of(part) for part in (thing.func, thing.args, thing.keywords)]
    if hasattr(thing, "__dict__") and not isinstance(thing, type):
        return path_of(thing), _made_of(vars(thing))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def is_brought(option: str, name: str) -> bool:
    """Whether an object was given from Python for the name."""
    return f"{option} {name}" in _BROUGHT.get()


def allow_import(option: str, name: str) -> None:
    """Find modules in the current directory, too, behind what is installed.

    Raises:
        UserError: the name is that of one of Python's own modules, which a file of options may not run.
    """
    module = name.partition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{option} {name}: {module} is one of Python's own modules; name one of yours")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)


def find_object(option: str, name: str) -> Any:
    """The object that an option names as `module:name`; the module is found in the current directory, too.

    Raises:
        UserError: it cannot be imported.
    """
    if is_brought(option, name):
        return _BROUGHT.get()[f"{option} {name}"]
    module, _, attribute = name.partition(":")
    if needs_object(name):
        keyword = option.removeprefix("--").removesuffix(".name")
        raise UserError(
            f"{option} {name}: it was given from Python and cannot be imported; give it again from Python, as "
            f"{keyword}=…, or put it into a module"
        )
    allow_import(option, name)
    try:
        return reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"{option} {name}: cannot be imported ({type(error).__name__}: {first_line(error)}); start in the folder "
            "of its module, or put that on PYTHONPATH"
        ) from error


def import_modules(modules: Iterable[str]) -> None:
    """Import the modules of `--import`; each is found in the current directory, too.

    Raises:
        UserError: one cannot be imported.
    """
    for module in modules:
        allow_import("--import", module)
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything
            raise UserError(
                f"--import {module}: cannot be imported ({type(error).__name__}: {first_line(error)}); start in its "
                "folder, or put that on PYTHONPATH"
            ) from error
