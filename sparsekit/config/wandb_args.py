"""Arguments as a W&B sweep agent writes them, made into plain options.

An agent fills `${args}` with `--name=value`, where the value is Python's `str`: `True`, `None`, `{'lr': 0.1}`,
`(1, 2)`. `${args_no_equals}`, `${args_no_boolean_flags}`, `${args_json}` and `${args_json_file}` are other ways to say
the same. A requeued run may carry `_wandb`, which is W&B's own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from sparsekit.config import yaml_file
from sparsekit.config.messages import GROUPED
from sparsekit.config.options import FitConfig, option_types
from sparsekit.config.plugin_yaml import ONE_VALUE, WANDB_KEY, flat
from sparsekit.plugins.registry import GROUPS, discover
from sparsekit.plugins.signatures import options_of

_WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's words, and YAML's


def plain(argv: Sequence[str]) -> list[str]:
    """The same arguments as options; raises UserError where a JSON file cannot be read."""
    found: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            values = _positional(argument)
            found += [argument] if values is None else plain(as_flags(values))
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            found.append(f"{flag}=true" if _is_switch(flag[2:]) else flag)
            continue
        if not equals and flag not in _HELP:
            value, equals = rest.pop(0), " "
        if flag != f"--{WANDB_KEY}":
            found += _option(flag, equals, value)
    return found


def as_flags(values: Mapping[str, object]) -> list[str]:
    """Options for what `${args_json}` says, a value for each name."""
    return [f"--{name}={value if isinstance(value, str) else _text(value)}" for name, value in flat(values)]


def _positional(argument: str) -> Mapping[str, object] | None:
    """The values that `${args_json}` or `${args_json_file}` gives; None for another argument."""
    if argument.startswith("{") and isinstance(values := _literal(argument), dict):
        return values
    return yaml_file.read(argument) if argument.endswith(".json") and Path(argument).is_file() else None


def _option(flag: str, equals: str, value: str) -> list[str]:
    read = _literal(value)
    if isinstance(read, dict) and flag[2:] in (*GROUPS, *GROUPED):
        return plain(as_flags({flag[2:]: read}))
    if isinstance(read, (dict, list, tuple)) and read != _yaml(value):  # what is YAML too stays as it was given
        value = json.dumps(read, ensure_ascii=False)
    value = _WORDS.get(value, value)
    flag = f"--{ONE_VALUE.get(flag[2:], flag[2:])}"
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


def _yaml(text: str) -> object:
    try:
        return yaml_file.parse(text)
    except yaml.YAMLError:
        return _NOTHING


def _text(value: object) -> str:
    """A value as W&B's agent writes it, with JSON for what is nested."""
    return (
        str(value) if isinstance(value, (bool, int, float)) or value is None else json.dumps(value, ensure_ascii=False)
    )


# --- what may stand without a value -------------------------------------------------------------------

_HELP = {f"--{kind}.help" for kind in GROUPS}


_SWITCHES = frozenset(name for name, kind in option_types(FitConfig).items() if kind is bool)


def _is_switch(name: str) -> bool:
    kind, _, option = name.partition(".")
    if kind not in GROUPS:
        return name in _SWITCHES
    own = [options_of(plugin).get(option) for plugin in discover().plugins if plugin.kind == kind and option]
    return any(found is not None and found.annotation == "bool" for found in own)
