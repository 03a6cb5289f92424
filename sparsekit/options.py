"""The option parser of `fit` and `plan`: plugin names for classes, YAML in and out, one-line errors."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_dumper,
    set_loader,
    set_parsing_settings,
)

from sparsekit import contract
from sparsekit.config import FitConfig
from sparsekit.errors import UserError, nearest
from sparsekit.registry import GROUPS, Kind, discover, find, name_of

DEFAULTS: dict[Kind, str] = {"method": "gmp", "merge": "uniform"}
# by class, so that another package that claims one of these names does not stop a run that names neither
_DEFAULT_CLASSES = {"method": "sparsekit.methods.gmp.GMP", "merge": "sparsekit.merges.uniform.Uniform"}
_MODE = "sparsekit"


class OptionParser(ArgumentParser):
    """A parser whose errors are a UserError of one line, with the nearest option where one is misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError with what argparse and jsonargparse say, made short."""
        raise UserError(explain(self, message)) from ex


class _Help(DefaultHelpFormatter):
    """Help without Python's type names; for plugins, their names."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest in GROUPS:
            names = ", ".join(discover().of(action.dest))
            return f"{action.help} Installed: {names}. (default: {DEFAULTS[action.dest]})"
        types = r" ?\((?:required, )?type: .*?(?:, default: (.*))?\)$"
        return re.sub(types, r" (default: \1)", super()._get_help_string(action), flags=re.S)


def build(prog: str, description: str) -> OptionParser:
    """The parser of one command that takes every option of FitConfig."""
    parser = bare(prog, description)
    parser.usage = f"{prog} [--method NAME] [--merge NAME] [--config FILE] [options]"
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; what follows it wins.")
    parser.add_class_arguments(FitConfig, nested_key=None)
    parser.set_defaults({kind: {"class_path": path} for kind, path in _DEFAULT_CLASSES.items()})
    parser.epilog = "A plugin's own options: --method.help NAME, --merge.help NAME; of all: sparsekit plugins list."
    return parser


def bare(prog: str, description: str) -> OptionParser:
    """A parser without options."""
    set_loader(_MODE, _load, exceptions=(yaml.YAMLError,))
    set_dumper(_MODE, _dump)
    packages = {plugin.target.partition(":")[0].partition(".")[0] for plugin in discover().plugins if not plugin.flaw}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(packages))
    return OptionParser(
        prog=prog, description=description, parser_mode=_MODE, allow_abbrev=False, formatter_class=_Help
    )


def parse(parser: OptionParser, argv: Sequence[str]) -> FitConfig:
    """The configuration that the options give; raises UserError."""
    try:
        given = parser.parse_args(_names_to_classes(argv))
        for item in fields(FitConfig):
            if is_dataclass(item.default_factory) and not isinstance(given[item.name], Namespace):
                raise UserError(f"--{item.name} is {given[item.name]!r}; give a mapping")
        values = parser.instantiate(given)
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # what a plugin's or a dataclass's constructor refuses
        raise UserError(explain(parser, str(error))) from error
    return FitConfig(**{key: value for key, value in vars(values).items() if key != "config"})


# --- plugin names on the command line and in YAML ---------------------------------------------------


def _names_to_classes(argv: Sequence[str]) -> list[str]:
    """Turn `--method NAME` into a class path, ahead of the options that it owns."""
    rest = ["--resume=true" if argument == "--resume" else argument for argument in argv]
    for kind in GROUPS:
        kept: list[str] = []
        base, chosen, place = DEFAULTS[kind], "", -1  # `place` is where the class belongs in `kept`
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if flag in (f"--{kind}", "--config") and (equals or rest):
                value = value if equals else rest.pop(0)
            if place < 0 and (flag == f"--{kind}" or flag.startswith(f"--{kind}.")):
                place = len(kept)
            if flag == "--config":
                if name := _named_in(value, kind):  # it wins over what comes before it
                    kept[place:place] = [chosen] if chosen else []
                    base, chosen, place = name, "", -1
                kept.append(f"{flag}={value}")
            elif flag == f"--{kind}" and value:
                value = name_of(kind, value)
                # another class than before must not inherit options that happen to have the same names
                spec = {"class_path": _class_path(kind, value)} if value == base else _spec(kind, value, {})
                chosen = f"{flag}={json.dumps(spec)}"
            else:
                kept.append(flag + equals + value)
        kept[place:place] = [chosen] if chosen else []
        rest = kept
    return rest


def _named_in(path: str, kind: Kind) -> str | None:
    """The plugin that a config file chooses; raises UserError where the file holds no options."""
    try:
        data = yaml.load(Path(path).read_text("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config {path}{line} is no YAML: {problem or str(error).splitlines()[0]}") from error
    except (OSError, ValueError):  # parsing proper tells what is wrong
        return None
    if not isinstance(data, dict):
        raise UserError(f"--config {path} holds no options; write one a line, such as sparsity: 0.9")
    spec = data.get(kind)
    name = spec.get("name", spec.get("class_path")) if isinstance(spec, dict) else spec
    return name_of(kind, name) if isinstance(name, str) else None


def _class_path(kind: Kind, name: str) -> str:
    if re.fullmatch(r"[\w-]+", name):
        plugin = find(kind, name)
        contract.load(plugin)  # here, where a failure can be told with its distribution
        return plugin.class_path
    return name


def _spec(kind: Kind, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """A class and all its options, those in `own` and the defaults of the rest."""
    name = name_of(kind, name)
    if not re.fullmatch(r"[\w-]+", name):
        return {"class_path": name, "init_args": own}
    plugin = find(kind, name)
    return {"class_path": plugin.class_path, "init_args": contract.defaults(contract.load(plugin)) | own}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, with `1e-05` a number as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load(text: str) -> Any:
    """YAML in which `method: gmp` and `method: {name: imp, cycles: 2}` stand for a class and its options."""
    data = yaml.load(text, _Loader)
    for kind in GROUPS if _is_config(data) else ():
        spec = data.get(kind)
        if kind in data and spec is None:  # `method:` and nothing after it
            del data[kind]
        if isinstance(spec, str):
            spec = {"name": spec}
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            own = {key: value for key, value in spec.items() if key != "name"}
            data[kind] = _spec(kind, spec["name"], own)
        elif isinstance(spec, dict) and isinstance(spec.get("class_path"), str):
            own = spec.get("init_args", {})
            data[kind] = _spec(kind, spec["class_path"], own) if isinstance(own, dict) else spec
    return data


def _is_config(data: Any) -> bool:
    """Whether YAML holds options of ours; mappings for timm, whose keys may bear any name, pass through here too."""
    if not isinstance(data, dict):
        return False
    others = {str(key).partition(".")[0] for key in data} - set(GROUPS)
    return not others or bool(others & {item.name for item in fields(FitConfig)})


def _dump(data: Any) -> str:
    for kind in GROUPS if isinstance(data, dict) else ():
        spec = data.get(kind)
        if isinstance(spec, dict) and "class_path" in spec:
            data[kind] = {"name": name_of(kind, spec["class_path"]), **spec.get("init_args", {})}
    return str(yaml.safe_dump(data, sort_keys=False))


# --- errors for people -------------------------------------------------------------------------------

_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "dict": "a mapping"}
_NO_PLUGIN = (
    r"given class_path '([^']+)'|import path (?:string|format): ?(.*)|Not a valid subclass of \w+\. Got value: (.*)"
)


def explain(parser: ArgumentParser, message: str) -> str:
    """One line that names the option and the fix, from argparse's or jsonargparse's several."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = "--" + ".".join(keys)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        if not flag.startswith("-"):
            return f"unexpected argument {flag!r}; options are written --name value"
        return f"unknown option {flag}.{nearest(flag, parser._option_string_actions)}"
    if found := re.search(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<key>[^']+)'", message):
        path = [*keys, *([found["group"]] if found["group"] else []), found["key"]]
        flag = "--" + ".".join(path)
        return f"unknown option {flag}.{nearest(flag, parser._option_string_actions)}"
    if found := re.search(r"Expected a (.+?)\. Got value: (.*)", message):
        return f"{option} is {found[2]!r}; {_expected(found[1], found[2])}"
    if found := re.search(r"Subtypes: \[(.*)\]", message):
        given = re.search(r"Given value: (.*)", message)
        value = given[1] if given else "?"
        if choices := re.search(r"typing\.Literal\[[^\]]*\]", found[1]):
            return f"{option} is {value!r}; {_expected(choices[0], value)}"
        return f"{option} is {value!r}; give {_union(found[1])}"
    if found := re.search(_NO_PLUGIN, message):
        kind = keys[0] if keys else "method"
        named = found[found.lastindex or 0]
        return f"{option} {named!r} is no installed plugin; name one: sparsekit plugins list --kind {kind}"
    if found := re.search(r"Unable to load config '([^'\n]*)'", message):
        return f"--{keys[0]} is {found[1]!r}; give a mapping"
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if found := re.match(rf'Parser key "({"|".join(GROUPS)})": (.*--.*)', text):
        return found[2].replace("--", f"--{found[1]}.")  # said by the parser of the plugin's own options
    return re.sub(r'^Parser key "([^"]+)":?', lambda m: f"--{m[1]}:", text)


def _expected(kind: str, value: str) -> str:
    if kind.startswith("typing.Literal"):
        choices = [str(choice) for choice in ast.literal_eval(kind.removeprefix("typing.Literal"))]
        return f"choose from {', '.join(choices)}.{nearest(value, choices)}"
    name = kind.removeprefix("<class '").removesuffix("'>")
    return f"give {'a list such as [a, b]' if name == 'list' else _TYPES.get(name, name)}"


def _union(subtypes: str) -> str:
    if "list[" in subtypes:
        return "a list such as [1, 2, 3]"
    found = [text for name, text in _TYPES.items() if f"'{name}'" in subtypes]
    return " or ".join(found) if found else subtypes
