"""YAML of config files and options: plain values only, within limits, and no code is ever run."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sparsekit.errors import UserError
from sparsekit.files import expanded

MAX_BYTES = 1 << 20
_MAX_DIGITS = 20  # far longer integers overflow a float, or cannot even be printed


class Loader(yaml.SafeLoader):
    """YAML 1.1, with `1e-05` a number as in YAML 1.2. Refuses a repeated key, and aliases: a few of them can stand for
    billions of values, or for a value inside itself.
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
        try:
            return super().construct_mapping(node, deep)
        except ValueError as error:  # a date of month 13
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value)} digits", node.start_mark)
    return int(loader.construct_yaml_int(node))


Loader.add_constructor("tag:yaml.org,2002:int", _int)


def parse(text: str) -> Any:
    """The value that a YAML text stands for; raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels") from error
    except (ValueError, OverflowError) as error:  # a lone value that Python refuses
        raise yaml.YAMLError(str(error)) from error


def read(path: str) -> dict[str, Any]:
    """The options in a config file.

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
        options = parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}{_place(error)}; write one option a line, such as sparsity: 0.9") from error
    if not isinstance(options, dict):
        raise UserError(f"--config {path} holds no options; write one a line, such as sparsity: 0.9")
    for key in options:
        if not isinstance(key, str):
            raise UserError(f"--config {path}: {key!r} is no option; write one a line, such as sparsity: 0.9")
    return options


def _place(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f", line {mark.line + 1}" if mark else ""
    text = str(problem or next(iter(str(error).splitlines()), "what cannot be read"))
    text = re.sub(r"could not determine a constructor for the (tag .*)", r"the \1, and tags are not read", text)
    return f"{line} is no YAML: {text}" if "found" in text or "expected" in text else f"{line} holds {text}"
