"""What the commands share: a parser, plugin warnings and help, a run's data as options, and tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from sparsekit.errors import UserError

if TYPE_CHECKING:
    from sparsekit.config.options import DataConfig
    from sparsekit.models.saved import SavedModel


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations that raises `UserError` for bad arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with one line that names the option and the fix."""
        from sparsekit.config.messages import from_argparse  # only now: it takes time to import

        raise UserError(f"{from_argparse(message)}; see {self.prog} --help")


def warn_of_plugins() -> None:
    """Print a warning for each installed package whose plugins cannot be found."""
    from sparsekit.plugins.registry import discover

    for note in discover().warnings:
        print(f"sparsekit: warning: {note}", file=sys.stderr)


def print_plugin_help(arguments: Sequence[str]) -> bool:
    """Print the help that an option such as `--method.help NAME` or `--data.help NAME` asks for; False without one.

    Raises:
        UserError: the name is missing, or no plugin has it.
    """
    from sparsekit.plugins import listing
    from sparsekit.plugins.registry import BUILT_IN, GROUP_OF_OPTIONS, GROUPS, discover, find

    for index, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        for kind in (*GROUPS, *GROUP_OF_OPTIONS):
            if flag == (option := f"--{GROUP_OF_OPTIONS.get(kind, kind)}.help"):
                name = value or next(iter(arguments[index + 1 :]), "")
                if not name:
                    raise UserError(f"{option} needs a name; installed: {', '.join(discover().of(kind))}")
                if kind == "dataset" and name in BUILT_IN["dataset"]:
                    raise UserError(f"{option} {name}: it has no options of its own; see --help for those of every one")
                print(listing.help_of(find(kind, name.partition("/")[0])))
                return True
    return False


def data_of(data: DataConfig, sources: Sequence[SavedModel], arguments: Sequence[str]) -> DataConfig | None:
    """The data to work with; None where no `--data.` option was given and no saved model names a data set."""
    given = any(argument.startswith("--data.") for argument in arguments)
    return data if given or any(source.run.get("data") for source in sources) else None


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}".rstrip())
