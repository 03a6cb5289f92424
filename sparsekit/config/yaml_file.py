"""YAML of config files and options: plain values only, within limits, and no code is ever run."""

from __future__ import annotations

import itertools
import re
from enum import Enum
from os import PathLike, fspath
from typing import Any

import yaml

from sparsekit.errors import UserError
from sparsekit.files import expanded

MAX_BYTES = 1 << 20
TAG = "!text"
_MAX_LEVELS = 100  # PyYAML's time grows with their square
_MAX_DIGITS = 20  # far longer integers overflow a float, or cannot even be printed


class Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: `1e-05` is a number, `010` is 10, and `2:4`, `1:30` and dates are text.

    Refuses a repeated key, and aliases: a few of them can stand for billions of values, or for a value inside itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node and all below it; raises ComposerError at an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*), which is not read; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises ConstructorError where a key is no plain value, or repeated."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no name", key.start_mark)
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Quoted(str):
    """A text inside a mapping; its type tells jsonargparse, which parses a plain text there once more, to let it be."""


def quoted(value: Any) -> Any:
    """The same value with texts that YAML would read as something else marked as `Quoted`."""
    if isinstance(value, dict):
        return {key: quoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(quoted, value))
    return Quoted(value) if isinstance(value, str) and _read_again(value) != value else value


def unquoted(value: Any) -> Any:
    """The same value with texts of Python's own type: paths and members of an Enum as they are given, too."""
    if isinstance(value, dict):
        return {unquoted(key): unquoted(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(unquoted, value))
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PathLike):
        return fspath(value)
    return str(value) if isinstance(value, Quoted) else value


class _ArgumentLoader(Loader):
    """Reads `Quoted` texts back, which stand behind `TAG`."""


class TextLoader(Loader):
    """Every value as the text that stands in the file, except `null`; nothing at all is an empty text."""


def _resolvers(*patterns: tuple[str, str]) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Kinds of plain values, each by a regular expression, for every first character."""
    kinds = [(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z")) for kind, pattern in patterns]
    return dict.fromkeys(["", *map(chr, range(33, 127))], kinds)


_NULL, _MERGE = ("null", "null|Null|NULL"), ("merge", "<<")
Loader.yaml_implicit_resolvers = _resolvers(
    ("null", f"{_NULL[1]}|~|"),
    ("bool", "|".join(f"{word}|{word.title()}|{word.upper()}" for word in ("true", "false", "yes", "no", "on", "off"))),
    ("int", r"[-+]?(?:0x[\da-fA-F_]+|0o[0-7_]+|0b[01_]+|\d[\d_]*)"),
    ("float", r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
    _MERGE,
)
TextLoader.yaml_implicit_resolvers = _resolvers(_NULL, _MERGE)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value)} digits", node.start_mark)
    digits = node.value.replace("_", "").lower()
    return int(digits, 0 if digits.lstrip("+-")[1:2] in ("x", "o", "b") else 10)


Loader.add_constructor("tag:yaml.org,2002:int", _int)
_ArgumentLoader.add_constructor(TAG, lambda loader, node: Quoted(node.value))


def parse(text: str, loader: type[Loader] = Loader) -> Any:
    """The value that a YAML text stands for; raises yaml.YAMLError."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    if max(itertools.accumulate(steps), default=0) > _MAX_LEVELS:
        raise yaml.YAMLError("too many levels")
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels") from error
    except (ValueError, OverflowError) as error:  # a lone value that Python refuses
        raise yaml.YAMLError(str(error)) from error


def _read_again(text: str) -> Any:
    try:
        return parse(text)
    except yaml.YAMLError:
        return text


def parse_argument(text: str) -> Any:
    """The value of an argument in YAML; only `null` is none: a comment, `~`, an anchor or nothing at all is text."""
    value = parse(text, _ArgumentLoader)
    return text if value is None and text.lower() != "null" else value


def read(path: str) -> dict[str, Any]:
    """The options in a config file; raises UserError as `read_both` does."""
    return read_both(path)[0]


def read_both(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options in a config file, and the same with the texts that stand in the file for all values.

    Raises:
        UserError: it cannot be read, is no YAML, or holds something other than options by name.
    """
    try:
        found = expanded(path)
        if not found.is_file():
            state = "is no file" if found.exists() else "does not exist"
            raise UserError(f"--config {path!r} {state}; give a YAML file of options")
        with found.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--config {path!r} cannot be read: {reason}; give a YAML file of options") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"--config {path} has more than {MAX_BYTES:,} bytes; give a YAML file of options")
    try:
        text = data.decode("utf-8-sig")
        options, texts = parse(text), parse(text, TextLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}{_place(error)}; write one option a line, such as sparsity: 0.9") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {path} holds no options; write one a line, such as sparsity: 0.9")
    for key in options:
        if not isinstance(key, str):
            raise UserError(f"--config {path}: {key!r} is no option; write one a line, such as sparsity: 0.9")
    return options, texts


def _place(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f", line {mark.line + 1}" if mark else ""
    text = str(problem or next(iter(str(error).splitlines()), "what cannot be read"))
    text = re.sub(r"could not determine a constructor for the (tag .*)", r"the \1, and tags are not read", text)
    return f"{line} is no YAML: {text}" if "found" in text or "expected" in text else f"{line} holds {text}"
