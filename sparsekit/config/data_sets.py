"""What `--data.name` may be, and the options that a data set's own function adds: `--data.file` of `csv`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import ArgumentParser

from sparsekit.config.options import DataConfig
from sparsekit.errors import UserError, nearest
from sparsekit.plugins import contract
from sparsekit.plugins.objects import find_object, is_brought
from sparsekit.plugins.registry import BUILT_IN, adopt, discover, find
from sparsekit.plugins.signatures import NO_OPTIONS

SHARED = tuple(item.name for item in fields(DataConfig) if item.name != "options")
"""The options of `--data` that every data set has."""
_PLAIN = (str, bool, int, float, type(None), list, tuple, dict)
"""The types of values that options have."""
_STREAMS = ("wds", "tfds", "hfids")


@dataclass(frozen=True)
class DataFunction:
    """The function behind a `--data.name`, which returns a `sparsekit.Data`.

    Attributes:
        call: The function.
        rest: What stands behind the slash of `torch/cifar10`; empty without one.
    """

    call: Callable[..., Any]
    rest: str = ""

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Its own options by name."""
        found = inspect.signature(self.call).parameters
        return {name: p for name, p in found.items() if name not in NO_OPTIONS and not name.startswith("_")}


def find_data(name: str, given: Collection[str] = ()) -> DataFunction | None:
    """The function behind a `--data.name`; None where the data set is built in, or was given from Python as it is.

    Args:
        name: The name.
        given: Options that stand beside it. Without any, a function that was given from Python need not keep the
            contract: it is called as it is.

    Raises:
        UserError: there is no such data set, it cannot be imported, or it breaks the contract.
    """
    if is_brought("--data.name", name):
        return _given(name, given)
    if name in BUILT_IN["dataset"]:
        return None
    adopt("dataset", name)
    known = discover().of("dataset")
    family, slash, rest = (name, "", "") if name in known else name.partition("/")
    if slash and family in _STREAMS:
        raise UserError(
            f"--data.name {name}: {family}/ is read as a stream, which can neither be split and drawn from alike in "
            "every run nor resumed; write its images to folders and give imagefolder, or to a tar and give imagetar"
        )
    if family not in (plugin.name for plugin in discover().plugins if plugin.kind == "dataset") and ":" not in name:
        names = [*BUILT_IN["dataset"], *(name for name in known if ":" not in name)]
        raise UserError(
            f"--data.name is {name!r}; choose from {', '.join(names)}, or module:function.{nearest(name, names)}"
        )
    plugin = find("dataset", family)
    call = contract.load_function(plugin, SHARED)
    takes_name = "name" in inspect.signature(call).parameters
    if bool(rest) != takes_name:
        need = "leave it out" if rest else f"write {family}/NAME; see --data.help {family}"
        raise UserError(f"--data.name {name}: {family} takes {'a' if takes_name else 'no'} name behind a slash; {need}")
    return DataFunction(call, rest)


def _given(name: str, given: Collection[str]) -> DataFunction | None:
    """The function that was given from Python for a name; None for data, and for one whose arguments are no options."""
    found = find_object("--data.name", name)
    if not callable(found):
        return None
    try:
        function = DataFunction(found)
        faults = list(contract.function_faults(found, SHARED))
    except ValueError:  # of some functions that are written in C
        return None
    if faults and given:
        raise UserError(f"--data.name {name} {faults[0]}")
    plain = all(p.default is p.empty or isinstance(p.default, _PLAIN) for p in function.options.values())
    return None if faults or not (plain or given) else function


def is_own(name: str) -> bool:
    """Whether a dotted name is none of the options that every data set has, but in their group."""
    group, _, option = name.partition(".")
    return group == "data" and bool(option) and option.partition(".")[0].rstrip("+") not in SHARED


def add_options(parser: ArgumentParser, function: DataFunction) -> None:
    """Add a data set's own options to a parser, where they are not there yet."""
    if not all(f"--data.{name}" in parser._option_string_actions for name in function.options):
        parser.add_function_arguments(function.call, "data", as_group=False, skip={*NO_OPTIONS})
