"""Messages about bad options: one line that names the option, the value, and the fix.

argparse and jsonargparse raise exceptions that mostly hold text. This file is the only one that knows its wording.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import zip_longest
from typing import Any

from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError, nearest
from sparsekit.plugins.registry import GROUP_OF_OPTIONS, GROUPS, Kind, discover, option_of
from sparsekit.plugins.signatures import options_of

_ARGUMENT = r"argument (?:-\w/)?([^\s:/]+)\S*: "
_FROM_ARGPARSE = (
    (_ARGUMENT + r"expected .*argument.*", r"\1 needs a value"),
    (_ARGUMENT + r"ignored explicit argument.*", r"\1 takes no value"),
    (_ARGUMENT + r"invalid choice: (.*) \((.*)\)", r"\1 is \2; \3"),
    (_ARGUMENT + r"invalid \w+ value: (.*)", r"\1 is \2; give a number"),
    (_ARGUMENT + r"(.*)", r"\1 \2"),
    (r"unrecognized arguments: (-\S+).*", r"unknown option \1"),
    (r"unrecognized arguments: (\S[^\s=]*).*", r"unexpected argument '\1'"),
    (r"the following arguments are required: (data\..*)", r"--\1 must be given"),
    (r"the following arguments are required: (.*)", r"\1 must be given"),
)
_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list such as [a, b]",
}
_PLUGIN = r"(?:class_path|Importing) '([^']*)'|Import path (\S+)|(?:Got value|import path (?:string|format)): ?(.*)"
_GUESSES = {  # the option that one value given to a whole group is most likely for
    "model": ((r"[\w.-]+|local-dir:.+", "name"), (".*/.*", "init")),
    "data": ((r"[\w.-]+", "name"), (".*/.*", "root")),
    "optimizer": ((r"\w+", "name"),),
    "replicas": ((r"\d+", "count"),),
    "wandb": (("online|offline|disabled", "mode"),),
}
GROUPED = [item.name for item in fields(FitConfig) if is_dataclass(item.default_factory)]


@dataclass
class Given:
    """What a command was given.

    Attributes:
        argv: Its arguments.
        known: The parser's options, without those of plugins.
        files: Its config files and their options.
        plugins: The chosen method, merge and data set: name and own options.
    """

    argv: Sequence[str] = ()
    known: Sequence[str] = ()
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    plugins: dict[Kind, tuple[str, list[str]]] = field(default_factory=dict)

    def located(self, error: UserError) -> UserError:
        """The error, and the config file that holds its option; the error alone where an argument gives that option."""
        found = re.search(r"--([\w.]+)", str(error))
        if not found or any(argument.partition("=")[0] == found[0] for argument in self.argv):
            return error
        option = found[1].rstrip(".")
        files = [file for file, options in self.files.items() if any(begins(name, option) for name in options)]
        return UserError(f"{error} (in {files[-1]})") if files else error

    def value(self, group: str) -> object:
        """The last value given to a group as a whole, on the command line or else in a config file."""
        for index in reversed(range(len(self.argv))):
            flag, equals, value = self.argv[index].partition("=")
            if flag == f"--{group}" and (equals or index + 1 < len(self.argv)):
                return value if equals else self.argv[index + 1]
        return next((options[group] for options in reversed(self.files.values()) if group in options), None)


def from_argparse(message: str) -> str:
    """A message of argparse as one that names the option, the value and the fix."""
    for pattern, replacement in _FROM_ARGPARSE:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return found.expand(replacement)
    return message


def explain(given: Given, message: str, error: BaseException | None) -> str:
    """A message of jsonargparse as one line that names the option, the value and the fix.

    Args:
        given: What the command was given.
        message: What jsonargparse would print.
        error: The exception that it caught, with its causes, where there is one.
    """
    causes = list(_causes(error))
    inner = next((str(cause) for cause in causes if isinstance(cause, UserError)), None)
    if inner and message.startswith('Parser key "config"'):  # of a config file
        return inner
    texts = [str(cause) for cause in causes] or [message]
    keys = [found[1] for text in texts if (found := re.match(r'Parser key "([^"]+)"', text))]
    keys = [key for key, inner in zip_longest(keys, keys[1:], fillvalue="") if not begins(inner, key)]
    option = "--" + ".".join(keys)
    for cause in causes:
        if type(cause).__name__ == "NSKeyError":  # private; "Option 'x' is not accepted", "Group 'x' does not accept …"
            return unknown(given, "--" + ".".join([*keys, *re.findall(r"'([^']+)'", str(cause))]))
    for text in reversed(texts):  # the innermost knows the type that a value or an item of a list must have
        if found := re.search(r"Expected a ((?:typing\.Literal|<class ').*)\. Got value: (.*)", text, re.DOTALL):
            kind, value = found.groups()
            return no_value(option[2:]) if value == "None" else f"{option} is {value!r}; {_expected(kind, value)}"
    if keys and keys[0] in GROUPED:
        return no_mapping(keys[0], given.value(keys[0]))
    if inner:
        return inner
    if keys and keys[0] in GROUPS:
        name = next((found[found.lastindex or 0] for text in texts if (found := re.search(_PLUGIN, text))), "")
        return f"{option} {name!r} is no installed plugin; name one: sparsekit plugins list --kind {keys[0]}"
    if found := re.match(r"unrecognized arguments: (-[^\s=]+)", message):
        return unknown(given, found[1])
    text = from_argparse(" ".join(line.strip() for line in message.splitlines() if line.strip()))
    if text.endswith(" needs a value"):  # argparse names the option --method where --method.start lacks its value
        name = text.partition(" ")[0]
        flags = [flag for flag in given.argv if begins(flag, name) and "=" not in flag]
        text = text.replace(name, flags[-1]) if flags else text
    usage = "; options are written --name value" if text.startswith("unexpected") or text.endswith("a value") else ""
    return re.sub(r'^Parser key "([^"]+)":?', r"--\1:", text) + usage


def unknown(given: Given, flag: str) -> str:
    """The message about an unknown option, with the nearest known one, or the plugins that have it."""
    head, dot, own = flag.removeprefix("--").partition(".")
    last = own.rpartition(".")[2] or head.replace("-", "_")
    same = [option for option in given.known if option.endswith(f".{last}")]
    for kind, (name, names) in given.plugins.items():
        if head != GROUP_OF_OPTIONS.get(kind, kind) or not dot:
            continue
        known = {other: plugins[0] for other, plugins in discover().of(kind).items() if ":" not in other}
        if others := sorted(other for other, plugin in known.items() if own in options_of(plugin)):
            whose = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
            return f"{flag} is no option of {kind} {name!r}, but of {whose}; add {option_of(kind)} {others[0]}"
        if kind not in GROUPS:
            continue
        has = f"has {', '.join(f'--{kind}.{option}' for option in names)}" if names else "has no options of its own"
        hint = nearest(last, names).replace("'", f"'--{kind}.", 1) or (_only(same) if not names else "")
        return f"unknown option {flag}.{hint} {kind.capitalize()} {name!r} {has}."
    misspelt = [kind for kind in GROUPS if nearest(head, (*GROUPS, *GROUPED)).endswith(f"{kind!r}?")]
    if dot and misspelt and head not in GROUPS:
        return f"unknown option {flag}. Did you mean '--{misspelt[0]}.{own}'?"
    return f"unknown option {flag}.{nearest(flag, same) or _only(same) or nearest(flag, given.known)}"


def no_value(name: str) -> str:
    """The message about an option that is null and may not be."""
    return f"--{name} has no value; give one, in quotes where it begins with #, or leave it out"


def no_mapping(group: str, value: object) -> str:
    """The message about a group of options that is given one value, such as `--optimizer adam`."""
    if value is None:
        return no_value(group)
    text = str(value)
    if text.endswith((".yaml", ".yml", ".json")):
        return f"--{group} is {text!r}, which is no file of options; give one, or options as --{group}.NAME VALUE"
    meant = (option for pattern, option in _GUESSES.get(group, ()) if re.fullmatch(pattern, text))
    hint = next((f" Did you mean --{group}.{option} {text}?" for option in meant), "")
    return f"--{group} is {value!r}; it is a group of options, written --{group}.NAME VALUE.{hint}"


def _expected(kind: str, value: str) -> str:
    if kind.startswith("typing.Literal"):
        choices = [str(choice) for choice in ast.literal_eval(kind.removeprefix("typing.Literal"))]
        return f"choose from {', '.join(choices)}.{nearest(value, choices)}"
    if kind == "<class 'float'>" and (share := re.fullmatch(r"'?([\d.]+) ?%'?", value)):
        return f"give a number, such as {float(share[1]) / 100:g}"
    name = kind.removeprefix("<class '").removesuffix("'>")
    return f"give {_TYPES.get(name, name)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _only(names: Sequence[str]) -> str:
    return f" Did you mean {names[0]!r}?" if len(names) == 1 else ""


def begins(name: str, *groups: str) -> bool:
    """Whether a dotted name is that of one of the groups, or of a member of one."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)
