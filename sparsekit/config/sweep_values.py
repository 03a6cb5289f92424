"""Whether the values of a sweep reached the run: W&B shows the sweep's values, whatever the run uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config import yaml_file
from sparsekit.config.plugin_yaml import flat
from sparsekit.errors import UserError, first_line
from sparsekit.plugins.registry import GROUPS, name_of


def check_agent(options: Mapping[str, Any]) -> None:
    """Compare the options of a run that W&B's agent started with the sweep's values, which the agent keeps in a file.

    Args:
        options: The run's options under flat, dotted names.

    Raises:
        UserError: an option has another value than the sweep gave it.
    """
    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH") or os.devnull)
    if not path.is_file():
        return
    try:
        found = yaml.safe_load(path.read_text("utf-8")) or {}
        values = {name: entry["value"] for name, entry in found.items() if isinstance(entry, dict)}
    except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"WANDB_SWEEP_PARAM_PATH {path} cannot be read: {first_line(error)}") from error
    check_arrived(options, values)


def check_arrived(options: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Compare the options of a run with the values that a sweep gave it.

    Parameters that are no options of sparsekit are left to whatever started it.

    Args:
        options: The run's options under flat, dotted names.
        values: The sweep's values by the names of its parameters.

    Raises:
        UserError: an option has another value than the sweep gave it.
    """
    for name, value in flat(values):
        parent, _, key = name.rpartition(".")
        if name not in options and isinstance(inner := options.get(parent), dict):  # one entry of --model.kwargs
            options = {**options, name: inner.get(key)}
        used = options.get(name)
        group = name.partition(".")[0]
        if name in GROUPS and isinstance(value, str):
            value = name_of(name, value)
        if (name in options or group in GROUPS) and not _same(value, used):
            has = f"is {used!r}" if name in options else f"is no option of the {group} {options.get(group)!r}"
            raise UserError(
                f"--{name} {has}, but the sweep gave {value!r}, which W&B would show; put --config and other options "
                "before ${args} in the sweep's command"
            )


def _same(value: Any, used: Any) -> bool:
    if isinstance(value, dict) and isinstance(used, dict):
        return value.keys() == used.keys() and all(_same(value[key], used[key]) for key in value)
    if isinstance(value, (list, tuple)) and isinstance(used, (list, tuple)):
        return len(value) == len(used) and all(map(_same, value, used))
    if isinstance(value, str) != isinstance(used, str):
        return str(value) == str(used) or _read(value) == _read(used)
    return bool(value == used)


def _read(value: Any) -> Any:
    """A text as the value that the command line makes of it."""
    if not isinstance(value, str):
        return value
    try:
        return None if value == "None" else yaml_file.parse(value)
    except yaml.YAMLError:
        return value
