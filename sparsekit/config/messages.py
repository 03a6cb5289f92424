"""What argparse and jsonargparse say of bad options, as one line that names the option and the fix."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError, nearest
from sparsekit.plugins.registry import GROUPS, Kind, discover
from sparsekit.plugins.signatures import options_of

_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "dict": "a mapping"}
_NO_PLUGIN = (
    r"given class_path '([^']+)'|import path (?:string|format): ?(.*)|Not a valid subclass of \w+\. Got value: (.*)"
)
_MEANT = {  # what one value in the place of a group of options is most likely for
    "model": ((r"[\w.-]+|local-dir:.+", "name"), (".*/.*", "init")),
    "data": ((r"[\w.-]+", "name"), (".*/.*", "root")),
    "optimizer": ((r"\w+", "name"),),
    "replicas": ((r"\d+", "count"),),
    "wandb": (("online|offline|disabled", "mode"),),
}
GROUPED = [item.name for item in fields(FitConfig) if is_dataclass(item.default_factory)]


@dataclass
class Given:
    """What a command was given, for messages about it.

    Attributes:
        argv: Its arguments.
        known: Every option of the parser; of plugins' own, none.
        files: Its config files and what they hold.
        plugins: The chosen method and merge: name and own options.
    """

    argv: Sequence[str] = ()
    known: Sequence[str] = ()
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    plugins: dict[Kind, tuple[str, list[str]]] = field(default_factory=dict)

    def located(self, error: UserError) -> UserError:
        """The same error with the config file named, where the option at fault stands in one."""
        found = re.search(r"--([\w.]+)", str(error))
        if not found or any(argument.partition("=")[0] == found[0] for argument in self.argv):
            return error
        path = found[1].rstrip(".").split(".")
        files = [file for file, options in self.files.items() if _holds(options, path)]
        return UserError(f"{error} (in {files[-1]})") if files else error


def unknown(given: Given, flag: str) -> str:
    """What to say of an option that there is not, with the nearest one that there is."""
    head, dot, own = flag.removeprefix("--").partition(".")
    last = own.rpartition(".")[2] or head.replace("-", "_")
    same = [option for option in given.known if option.endswith(f".{last}")]
    for kind, (name, names) in given.plugins.items():
        if head != kind or not dot:
            continue
        if own in names:  # known, but not where it stands: a file behind it chooses another plugin
            return misplaced(flag, kind, name)
        if others := sorted(other for other, plugins in discover().of(kind).items() if own in options_of(plugins[0])):
            whose = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
            return f"{flag} is no option of {kind} {name!r}, but of {whose}; add --{kind} {others[0]}"
        has = f"has {', '.join(f'--{kind}.{option}' for option in names)}" if names else "has no options of its own"
        hint = nearest(last, names).replace("'", f"'--{kind}.", 1) or (_only(same) if not names else "")
        return f"unknown option {flag}.{hint} {kind.capitalize()} {name!r} {has}."
    misspelt = [kind for kind in GROUPS if nearest(head, (*GROUPS, *GROUPED)).endswith(f"{kind!r}?")]
    if dot and misspelt and head not in GROUPS:
        return f"unknown option {flag}. Did you mean '--{misspelt[0]}.{own}'?"
    return f"unknown option {flag}.{nearest(flag, same) or _only(same) or nearest(flag, given.known)}"


def misplaced(flag: str, kind: Kind, name: str) -> str:
    """What to say of a plugin's option that a config file behind it makes void."""
    return f"{flag} stands before the --config that chooses {kind} {name!r}; put it behind"


def explain(given: Given, message: str) -> str:
    """One line that names the option and the fix, from argparse's or jsonargparse's several."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = "--" + ".".join(key for i, key in enumerate(keys) if i + 1 == len(keys) or not _begins(keys[i + 1], key))
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        if not flag.startswith("-"):
            return f"unexpected argument {flag!r}; options are written --name value"
        return unknown(given, flag)
    if found := re.search(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<key>[^']+)'", message):
        path = [*keys, *([found["group"]] if found["group"] else []), found["key"]]
        return unknown(given, "--" + ".".join(path))
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+): expected one argument", message):
        flags = [flag for flag in given.argv if _begins(flag, found[1]) and "=" not in flag]
        return f"{flags[-1] if flags else found[1]} needs a value; options are written --name value"
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+): ignored explicit argument", message):
        return f"{found[1]} takes no value"
    if found := re.search(r"Expected a (.+?)\. Got value: (.*)", message):
        return f"{option} is {found[2]!r}; {_expected(found[1], found[2])}"
    if found := re.search(r"Subtypes: \[(.*)\]", message):
        of = re.search(r"Given value: (.*)", message)
        value = of[1] if of else "?"
        if choices := re.search(r"typing\.Literal\[[^\]]*\]", found[1]):
            return f"{option} is {value!r}; {_expected(choices[0], value)}"
        return f"{option} is {value!r}; give {_union(found[1])}"
    if (found := re.search(r"Importing '([^']*)' is not allowed", message)) and keys[:1] not in (["method"], ["merge"]):
        if keys in [[group] for group in GROUPED]:  # a name with a dot in it, such as resnet18.a1_in1k
            return no_mapping(keys[0], found[1])
        return f"{option if keys else 'an option'}: class_path {found[1]!r} is no plugin; give plain values"
    if found := found or re.search(_NO_PLUGIN, message):
        kind = keys[0] if keys else "method"
        named = found[found.lastindex or 0]
        return f"{option} {named!r} is no installed plugin; name one: sparsekit plugins list --kind {kind}"
    if found := re.search(r"""Unable to load config (['"])([^\n]*?)\1(?: -|$)""", message):
        return no_mapping(keys[0], found[2])
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if found := re.match(r'Parser key "(\w+)": unknown option --([^ ]*)[.;]', text):
        return unknown(given, f"--{found[1]}.{found[2]}")
    if found := re.match(rf'Parser key "({"|".join(GROUPS)})": (.*--.*)', text):
        return found[2].replace("--", f"--{found[1]}.")  # said by the parser of the plugin's own options
    return re.sub(r'^Parser key "([^"]+)":?', lambda m: f"--{m[1]}:", text)


def no_mapping(group: str, value: object) -> str:
    """What to say where a group of options is given one value, as a plugin's name would be."""
    text = value if isinstance(value, str) else str(value)
    if text.endswith((".yaml", ".yml", ".json")):
        return f"--{group} is {text!r}, which is no file of options; give one, or options as --{group}.NAME VALUE"
    meant = (option for pattern, option in _MEANT.get(group, ()) if re.fullmatch(pattern, text))
    hint = next((f" Did you mean --{group}.{option} {text}?" for option in meant), "")
    return f"--{group} is {value!r}; it is a group of options, written --{group}.NAME VALUE.{hint}"


def _expected(kind: str, value: str) -> str:
    if kind.startswith("typing.Literal"):
        choices = [str(choice) for choice in ast.literal_eval(kind.removeprefix("typing.Literal"))]
        return f"choose from {', '.join(choices)}.{nearest(value, choices)}"
    if kind == "<class 'float'>" and (share := re.fullmatch(r"'?([\d.]+) ?%'?", value)):
        return f"give a number, such as {float(share[1]) / 100:g}"
    name = kind.removeprefix("<class '").removesuffix("'>")
    return f"give {'a list such as [a, b]' if name == 'list' else _TYPES.get(name, name)}"


def _union(subtypes: str) -> str:
    if "list[" in subtypes:
        return "a list such as [1, 2, 3]"
    found = [text for name, text in _TYPES.items() if f"'{name}'" in subtypes]
    return " or ".join(found) if found else subtypes


def _only(names: Sequence[str]) -> str:
    return f" Did you mean {names[0]!r}?" if len(names) == 1 else ""


def _begins(name: str, group: str) -> bool:
    """Whether an option is a group, or one of its members."""
    return name == group or name.startswith(f"{group}.")


def _holds(options: Any, path: Sequence[str]) -> bool:
    """Whether a config file's mapping has an option, written nested, dotted, or among a class's `init_args`."""
    if not path:
        return True
    if not isinstance(options, dict):
        return path == ["name"]
    inner = options.get("init_args")
    return (
        ".".join(path) in options
        or (path[0] in options and _holds(options[path[0]], path[1:]))
        or (isinstance(inner, dict) and _holds(inner, path))
    )
