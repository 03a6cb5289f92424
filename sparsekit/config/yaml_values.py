"""What a value in YAML stands for, given the type of its option: a text, a number, none, or no value at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args, get_origin

import yaml

from sparsekit.config import yaml_file
from sparsekit.config.messages import no_value
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUP_OF_OPTIONS, GROUPS, discover
from sparsekit.plugins.signatures import options_of


def meant(types: Mapping[str, Any], name: str, value: Any, text: Any) -> Any:
    """The value of an option in a file.

    Args:
        types: The types of sparsekit's own options.
        name: The option's dotted name.
        value: The value as YAML reads it.
        text: The same with the texts that stand in the file.

    Returns:
        The text where the option takes text, else the value; in a mapping, texts are marked as such.

    Raises:
        UserError: nothing but a comment stands for a value, `~` for a text, or `1:30` for a number.
    """
    if _nulls(value, text, ""):
        raise UserError(no_value(name))
    _check_number(types, name, value)
    if takes_whole(types, name) and isinstance(value, float) and value.is_integer():
        return int(value)  # as the command line does
    if takes_mapping(types, name):
        return yaml_file.quoted(value)
    if not takes_text(types, name) or isinstance(value, dict):
        return value
    if _nulls(value, text, "~"):
        raise UserError(f"--{name} is ~, which may be meant as none or as a text; write null, or '~' in quotes")
    return text


def check_argument(types: Mapping[str, Any], name: str, value: str) -> None:
    """Check an argument as it was given; W&B's agent writes `None` for none.

    Raises:
        UserError: it is `null` where that may be a text, or has an item or entry without a value.
    """
    is_text = takes_text(types, name)
    if is_text and value.lower() == "null":
        raise UserError(f"--{name} is null, which may be meant as none or as a text; write None for none")
    with suppress(yaml.YAMLError):
        found = yaml_file.parse(value)
        if isinstance(found, list if is_text else (dict, list)) and _nulls(
            found, yaml_file.parse(value, yaml_file.TextLoader), ""
        ):
            raise UserError(no_value(name))


def check_number(types: Mapping[str, Any], name: str, value: str) -> None:
    """Refuse `1:30` for a number: jsonargparse would read it as 90, as YAML 1.1 does."""
    with suppress(yaml.YAMLError):
        _check_number(types, name, yaml_file.parse(value))


def takes_text(types: Mapping[str, Any], name: str) -> bool:
    """Whether an option, of sparsekit or of a plugin, takes text, or none, or a list of texts."""
    kinds = [kind for kind in _types(types, name) if get_origin(kind) is not dict]
    return any(kind is str or str in get_args(kind) or kind in ("str", "str | None", "list[str]") for kind in kinds)


def takes_list(types: Mapping[str, Any], name: str) -> bool:
    """Whether an option takes a list."""
    return any(str(kind).startswith("list") for kind in _types(types, name))


def takes_mapping(types: Mapping[str, Any], name: str) -> bool:
    """Whether an option takes a mapping."""
    return any(str(kind).startswith("dict") for kind in _types(types, name))


def takes_whole(types: Mapping[str, Any], name: str) -> bool:
    """Whether an option takes a whole number, or none."""
    return any(kind is int or kind in ("int", "int | None") or int in get_args(kind) for kind in _types(types, name))


def takes_switch(types: Mapping[str, Any], name: str) -> bool:
    """Whether an option is true or false, and may stand without a value."""
    return any(kind in (bool, "bool") for kind in _types(types, name))


def _check_number(types: Mapping[str, Any], name: str, value: object) -> None:
    texts = list(map(str, _types(types, name)))
    is_number = any(re.search(r"\b(int|float|bool)\b", text) and "str" not in text for text in texts)
    for item in value if isinstance(value, list) else [value]:
        if is_number and isinstance(item, str) and re.fullmatch(r"[-+]?\d[\d_]*(:\d+)+(\.\d*)?", item):
            raise UserError(f"--{name} is {item!r}; give a number")


def _nulls(value: Any, text: Any, word: str) -> bool:
    """Whether YAML reads a word, or nothing, as null: as the value, or in its lists and mappings."""
    if isinstance(value, dict):  # `{layers:3}` has a key of that name, and another check for it
        each = zip(value, value.values(), text.values(), strict=True)
        return any(_nulls(inner, own, word) for key, inner, own in each if str(key).isidentifier())
    if isinstance(value, list):
        return any(_nulls(inner, own, word) for inner, own in zip(value, text, strict=True))
    return value is None and text == word


def _types(types: Mapping[str, Any], name: str) -> list[Any]:
    """The types of an option: one of sparsekit's own, or as source text those of all plugins that have the option."""
    group, _, option = name.partition(".")
    if name in types:
        return [types[name]]
    if kind := next((kind for kind in (*GROUPS, *GROUP_OF_OPTIONS) if GROUP_OF_OPTIONS.get(kind, kind) == group), None):
        plugins = [plugin for found in discover().of(kind).values() for plugin in found]
        return [own.annotation for plugin in plugins if (own := options_of(plugin).get(option))]
    return [types[name]] if name in types else []
