"""The examples of a data set that is a function: a plugin's, or one of the user's own."""

from __future__ import annotations

import inspect
from typing import Any

from sparsekit.config.data_sets import find_data
from sparsekit.config.options import DataConfig
from sparsekit.data.examples import Data
from sparsekit.errors import UserError, first_line
from sparsekit.plugins.objects import find_object, is_brought


def open_data(config: DataConfig) -> Data | None:
    """The examples that the function of `--data.name` returns, or that were given from Python; None if it is built in.

    Raises:
        UserError: there is no such data set, an option does not suit it, or it returns no examples.
    """
    what = f"--data.name {config.name}"
    arguments: dict[str, Any] = {}
    if is_brought("--data.name", config.name):
        made = find_object("--data.name", config.name)
        rooted = config.root is not None and callable(made) and "root" in inspect.signature(made).parameters
        arguments = config.options | ({"root": config.root} if rooted else {})
    elif (function := find_data(config.name)) is None:
        return None
    else:
        made, takes = function.call, inspect.signature(function.call).parameters
        shared = {"root": config.root, "name": function.rest}
        arguments = {name: value for name, value in shared.items() if name in takes} | config.options
    if config.root is not None and "root" not in arguments:
        raise UserError(f"--data.root {config.root}: {what} takes no folder; leave it out")
    if callable(made):
        try:
            made = made(**arguments)
        except UserError:
            raise
        except Exception as error:  # a user's function may raise anything
            told = isinstance(error, ValueError) and str(error).startswith("--data.")
            reason = first_line(error) if told else f"{what}: it raises {type(error).__name__}: {first_line(error)}"
            raise UserError(reason) from error
    if isinstance(made, (tuple, list)) and len(made) in (2, 3):
        made = Data(*made)  # train, test, and perhaps held out
    if not isinstance(made, Data):
        raise UserError(f"{what}: it gives {type(made).__name__}; return sparsekit.Data(train=…, test=…)")
    return made
