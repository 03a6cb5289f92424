"""Arguments as a W&B sweep agent writes them, made into plain options.

An agent fills `${args}` with `--name=value`, where the value is Python's `str`: `True`, `None`, `{'lr': 0.1}`,
`(1, 2)`. `${args_no_equals}`, `${args_no_boolean_flags}`, `${args_json}` and `${args_json_file}` are other ways to say
the same. A requeued run may carry `_wandb`, which is W&B's own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config import yaml_file, yaml_values
from sparsekit.config.messages import GROUPED
from sparsekit.config.options import FitConfig, option_types
from sparsekit.config.plugin_yaml import ONE_VALUE, WANDB_KEY, flat, text
from sparsekit.plugins.registry import GROUPS

_WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's words, and YAML's


def plain(argv: Sequence[str], types: Mapping[str, Any]) -> list[str]:
    """The same arguments as options.

    Args:
        argv: The arguments.
        types: The types of the command's options.

    Raises:
        UserError: a JSON file cannot be read, or a text in JSON is `null`.
    """
    found: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            values = _positional(argument)
            for name, own in flat(values or {}):
                if isinstance(own, str):
                    yaml_values.check_argument(types, name, own)
            found += [argument] if values is None else plain(as_flags(values), types)
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            found.append(f"{flag}=true" if yaml_values.takes_switch(_FIT, flag[2:]) else flag)
            continue
        if not equals and flag not in _HELP:
            value, equals = rest.pop(0), " "
        if flag != f"--{WANDB_KEY}":
            found += _option(flag, equals, value, types)
    return found


def as_flags(values: Mapping[str, object]) -> list[str]:
    """Options for what `${args_json}` says, a value for each name."""
    return [f"--{name}={value if isinstance(value, str) else _text(value)}" for name, value in flat(values)]


def _positional(argument: str) -> Mapping[str, object] | None:
    """The values that `${args_json}` or `${args_json_file}` gives; None for another argument."""
    if argument.startswith("{") and isinstance(values := _literal(argument), dict):
        return values
    return yaml_file.read(argument) if argument.endswith(".json") and Path(argument).is_file() else None


def _option(flag: str, equals: str, value: str, types: Mapping[str, Any]) -> list[str]:
    read, name = _literal(value), flag[2:]
    if isinstance(read, dict) and name in (*GROUPS, *GROUPED):
        return plain(as_flags({name: read}), types)
    if yaml_values.takes_text(types, name):
        if isinstance(read, (list, tuple)) and yaml_values.takes_list(types, name):
            written = _yaml(value, yaml_file.TextLoader)  # nothing for a tuple
            items = zip(read, written if isinstance(written, list) else read, strict=True)
            value = text([item if isinstance(item, str) else own for item, own in items])
    elif yaml_values.takes_whole(types, name):
        value = re.sub(r"(?<=\d)\.0+$", "", value)  # W&B's q_uniform
    elif isinstance(read, dict) and yaml_file.TAG in (line := text(yaml_file.quoted(read))):
        value = line
    elif isinstance(read, (dict, list, tuple)) and read != _yaml(value):  # what is YAML too stays as it was given
        value = json.dumps(read, ensure_ascii=False)
    value = _WORDS.get(value, value)
    flag = f"--{ONE_VALUE.get(name, name)}"
    return [flag, value] if equals == " " else [f"{flag}{equals}{value}"]


_NOTHING = object()


def _literal(text: str) -> object:
    """The value of a Python or JSON literal with brackets."""
    if text[:1] not in ("[", "{", "(") or len(text) > yaml_file.MAX_BYTES:
        return _NOTHING
    readers: tuple[Callable[[str], object], ...] = (ast.literal_eval, json.loads, yaml_file.parse)
    for reader in readers:
        try:
            return reader(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, yaml.YAMLError):
            continue
    return _NOTHING


def _yaml(text: str, loader: type[yaml_file.Loader] = yaml_file.Loader) -> object:
    try:
        return yaml_file.parse(text, loader)
    except yaml.YAMLError:
        return _NOTHING


def _text(value: object) -> str:
    """A value as W&B's agent writes it, with JSON for what is nested."""
    return (
        str(value) if isinstance(value, (bool, int, float)) or value is None else json.dumps(value, ensure_ascii=False)
    )


# --- what may stand without a value -------------------------------------------------------------------

_FIT = option_types(FitConfig)
_HELP = {f"--{kind}.help" for kind in GROUPS}
