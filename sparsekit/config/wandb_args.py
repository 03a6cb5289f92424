"""Arguments as a W&B sweep agent writes them, made into plain options.

An agent fills `${args}` with `--name=value`, where the value is Python's `str`: `True`, `None`, `{'lr': 0.1}`,
`(1, 2)`. `${args_no_equals}`, `${args_no_boolean_flags}`, `${args_json}` and `${args_json_file}` are other ways to say
the same. A requeued run may carry `_wandb`, which is W&B's own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from sparsekit.config import yaml_file
from sparsekit.config.messages import GROUPED
from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUPS, discover
from sparsekit.plugins.signatures import options_of

_WORDS = {"None": "null", "True": "true", "False": "false"}
_SHORT = {"--distill": "--distill.model"}
"""Groups of options that take one value, too."""
_OWN = "_wandb"
"""What W&B adds for itself."""


def plain(argv: Sequence[str]) -> list[str]:
    """The same arguments as options; raises UserError where a JSON file cannot be read."""
    found: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            found += _positional(argument)
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            found.append(f"{flag}=true" if _is_switch(flag[2:]) else flag)
            continue
        if not equals and flag not in _HELP:
            value, equals = rest.pop(0), " "
        if flag != f"--{_OWN}":
            found += _option(flag, equals, value)
    return found


def as_flags(values: Mapping[str, object]) -> list[str]:
    """Options for what `${args_json}` says, a value for each name."""
    return [part for key, value in values.items() if key != _OWN for part in _flattened(f"--{key}", value)]


def _positional(argument: str) -> list[str]:
    if argument.startswith("{") and isinstance(values := _literal(argument), dict):
        return as_flags(values)
    if argument.endswith(".json") and Path(argument).is_file():
        return as_flags(yaml_file.read(argument))
    return [argument]


def _option(flag: str, equals: str, value: str) -> list[str]:
    read = _literal(value)
    if isinstance(read, dict) and flag[2:] in (*GROUPS, *GROUPED):
        return _flattened(flag, read)
    if read is not _NOTHING and read != _yaml(value):  # what is YAML too stays as it was given
        value = _text(read)
    value = _WORDS.get(value, value)
    flag = _SHORT.get(flag, flag)
    return [flag, value] if equals == " " else [f"{flag}{equals}{value}"]


def _flattened(flag: str, value: object) -> list[str]:
    """`--optimizer` with a mapping as `--optimizer.lr` and the like."""
    if not isinstance(value, dict) or flag[2:] not in (*GROUPS, *GROUPED):
        return [f"{_SHORT.get(flag, flag)}={value if isinstance(value, str) else _text(value)}"]
    own = value.get("init_args")
    if flag[2:] in GROUPS and isinstance(own, dict):
        value = {key: inner for key, inner in value.items() if key != "init_args"} | own
    chooses = ("name", "class_path") if flag[2:] in GROUPS else ()
    return [
        f"{flag if key in chooses else f'{flag}.{key}'}={inner if isinstance(inner, str) else _text(inner)}"
        for key, inner in value.items()
        if key != _OWN
    ]


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
    """One line of YAML."""
    if isinstance(value, (bool, int, float)) or value is None:
        return _WORDS.get(str(value), str(value))
    return json.dumps(value, ensure_ascii=False)


# --- what may stand without a value -------------------------------------------------------------------

_HELP = {f"--{kind}.help" for kind in GROUPS}


def _switches(owner: Any, prefix: str = "") -> Iterator[str]:
    types = get_type_hints(owner)
    for item in fields(owner):
        if types[item.name] is bool:
            yield prefix + item.name
        elif is_dataclass(item.default_factory):
            yield from _switches(item.default_factory, f"{item.name}.")


_SWITCHES = frozenset(_switches(FitConfig))


def _is_switch(name: str) -> bool:
    kind, _, option = name.partition(".")
    if kind not in GROUPS:
        return name in _SWITCHES
    own = [options_of(plugin).get(option) for plugin in discover().plugins if plugin.kind == kind and option]
    return any(found is not None and found.annotation == "bool" for found in own)


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """A config file's options with `method.steps: 3` written as `method: {steps: 3}`, W&B's own left out.

    Raises:
        UserError: an option stands there both ways.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        if "." not in str(key) and key != _OWN:
            found[key] = {k: v for k, v in value.items() if k != _OWN} if isinstance(value, dict) else value
    for key, value in options.items():
        group, dot, name = str(key).partition(".")
        if not dot or group not in (*GROUPS, *GROUPED):
            found |= {key: value} if dot else {}
            continue
        inner = found.setdefault(group, {})
        if group in GROUPS and isinstance(inner, str):
            inner = found[group] = {"name": inner}
        if inner is None:
            inner = found[group] = {}
        own = inner.setdefault("init_args", {}) if isinstance(inner, dict) and "class_path" in inner else inner
        if not isinstance(own, dict) or name in own:
            raise UserError(f"--{key} stands twice in one file; give it once")
        own[name] = value
    return found
