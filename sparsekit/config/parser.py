"""The option parser of commands: plugin names for classes, YAML in and out, one-line errors."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

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

from sparsekit.config import plugin_yaml as yamlforms
from sparsekit.config import wandb_args as agentargs
from sparsekit.config import yaml_file as configfile
from sparsekit.config.checks import check
from sparsekit.config.messages import GROUPED, Given, explain, misplaced, no_mapping, unknown
from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUPS, Kind, discover, name_of
from sparsekit.plugins.signatures import options_of

DEFAULTS: dict[Kind, str] = {"method": "gmp", "merge": "uniform"}
# by class, so that another package that claims one of these names does not stop a run that names neither
_DEFAULT_CLASSES = {"method": "sparsekit.methods.gmp.GMP", "merge": "sparsekit.merges.uniform.Uniform"}
_MODE = "sparsekit"
_WHOLE = {"--resume": "--resume=true", "--measure": "--measure=true", "--distill": "--distill.model"}
_LONG = {"--prune-again": "--prune_again", "-o": "--out"}
_ALONE = ("-h", "--help", "--resume", "--measure", "--print_config")
T = TypeVar("T")


class OptionParser(ArgumentParser):
    """A parser whose errors are a UserError of one line, with the nearest option where one is misspelt."""

    given = Given()  # jsonargparse makes parsers of plugins' own options from this class

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError with what argparse and jsonargparse say, made short."""
        raise UserError(explain(self.given, message)) from ex


class _Help(DefaultHelpFormatter):
    """Help without Python's type names; for plugins, their names."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest in GROUPS:
            names = ", ".join(discover().of(action.dest))
            return f"{action.help} Installed: {names}. (default: {DEFAULTS[action.dest]})"
        types = r" ?\((?:required, )?type: .*?(?:, default: (.*))?\)$"
        return re.sub(types, r" (default: \1)", super()._get_help_string(action), flags=re.S)


def build(prog: str, description: str, of: type = FitConfig, usage: str = "") -> OptionParser:
    """The parser of one command whose options are the fields of a dataclass, by default all that `fit` has."""
    parser = bare(prog, description)
    kinds = [kind for kind in GROUPS if any(item.name == kind for item in fields(of))]
    parser.usage = usage or f"{prog} [--method NAME] [--merge NAME] [--config FILE] [options]"
    if of is FitConfig:
        parser.add_argument(
            "--config", action=ActionConfigFile, help="YAML file of these options; what follows it wins."
        )
    parser.add_class_arguments(of, nested_key=None)
    for action in parser._actions:
        choices = [
            get_args(part) for part in get_args(getattr(action, "_typehint", None)) if get_origin(part) is Literal
        ]
        if choices:  # jsonargparse shows them only where there is no None beside them
            action.metavar = f"{{{','.join(map(str, choices[0]))}}}"
        if action.dest in GROUPED:
            action.metavar, action.help = "MAPPING", f"All of --{action.dest}.* at once, in YAML or as a file of it."
        if action.dest == "distill":
            action.metavar, action.help = "DIR", "Short for --distill.model DIR."
    parser.set_defaults({kind: {"class_path": _DEFAULT_CLASSES[kind]} for kind in kinds})
    if kinds:
        helps = ", ".join(f"--{kind}.help NAME" for kind in kinds)
        parser.epilog = f"A plugin's own options: {helps}; of all: sparsekit plugins list."
    return parser


def bare(prog: str, description: str) -> OptionParser:
    """A parser without options."""
    set_loader(_MODE, yamlforms.load, exceptions=(yaml.YAMLError,))
    set_dumper(_MODE, yamlforms.dump)
    packages = {plugin.target.partition(":")[0].partition(".")[0] for plugin in discover().plugins if not plugin.flaw}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(packages))
    return OptionParser(
        prog=prog, description=description, parser_mode=_MODE, allow_abbrev=False, formatter_class=_Help
    )


def inform(parser: OptionParser, argv: Sequence[str]) -> Given:
    """Let a parser know its arguments before it reads them, for what it says of wrong ones."""
    known = [name for name in parser._option_string_actions if name.startswith("--") and not name.endswith(".help")]
    parser.given = Given(argv, known)
    return parser.given


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without an option's name, and the rest, where each option stands with its value."""
    places, options = [], []
    left = list(argv)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            places.append(argument)
            continue
        options.append(argument)
        if "=" not in argument and argument not in _ALONE and left:
            options.append(left.pop(0))
    return places, options


def parse(parser: OptionParser, argv: Sequence[str]) -> FitConfig:
    """The checked configuration that the options give; raises UserError."""
    config = parse_as(FitConfig, parser, argv)
    try:
        check(config)
    except UserError as error:
        raise parser.given.located(error) from error
    return config


def parse_as(of: type[T], parser: OptionParser, argv: Sequence[str]) -> T:
    """What the options give to a parser that `build` made of the same dataclass; raises UserError."""
    argv = agentargs.plain(argv)
    given = inform(parser, argv)
    try:
        for flag in (argument.partition("=")[0] for argument in argv):
            if re.fullmatch(r"--[\w.-]*\.(\..*)?", flag):  # without a name between dots, or behind the last
                raise UserError(f"{flag!r} is no option: a name is missing at a dot; see --help")
        return _parsed(of, parser, _names_to_classes(argv, given))
    except UserError as error:
        raise given.located(error) from error


def _parsed(of: type[T], parser: OptionParser, argv: Sequence[str]) -> T:
    try:
        found = parser.parse_args(argv)
        _no_value_missing(found, of)
        for kind, (name, _) in parser.given.plugins.items():
            if kind not in found:
                continue
            own = vars(found[kind]).get("init_args")
            types = {o.name: o.annotation for p in discover().of(kind).get(name, ()) for o in options_of(p).values()}
            for option in vars(own) if own else ():
                if own[option] is None and not re.search("None|Optional|Any", types.get(option, "Any")):
                    raise UserError(f"--{kind}.{option} has no value; give one, or leave it out")
        values = parser.instantiate(found)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # what a plugin's or a dataclass's constructor refuses
        raise UserError(explain(parser.given, str(error))) from error
    return of(**{key: value for key, value in vars(values).items() if key != "config"})


def _no_value_missing(found: Namespace, owner: Any, prefix: str = "--") -> None:
    """Raise UserError where YAML has a key without a value, and there is no such thing as none."""
    types = get_type_hints(owner)
    for item in fields(owner):
        value, group = found[item.name], is_dataclass(item.default_factory)
        if value is None and type(None) not in get_args(types[item.name]):
            raise UserError(f"{prefix}{item.name} has no value; give one, or leave it out")
        if group and not isinstance(value, Namespace):
            raise UserError(no_mapping(item.name, value))
        if group:
            _no_value_missing(value, item.default_factory, f"{prefix}{item.name}.")


# --- plugin names on the command line and in YAML ---------------------------------------------------


def _names_to_classes(argv: Sequence[str], given: Given) -> list[str]:
    """Turn `--method NAME` into a class path, ahead of the options that it owns."""
    rest = [_WHOLE.get(argument, argument) for argument in argv]
    rest = [_LONG.get(flag, flag) + equals + value for flag, equals, value in (a.partition("=") for a in rest)]
    rest = [re.sub(r"^--distill=(?!\{)", "--distill.model=", argument) for argument in rest]
    for kind in GROUPS:
        kept: list[str] = []
        base, chosen, place = DEFAULTS[kind], "", -1  # `place` is where the class belongs in `kept`
        name = base
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if flag in (f"--{kind}", "--config") and (equals or rest):
                value = value if equals else rest.pop(0)
            if place < 0 and (flag == f"--{kind}" or flag.startswith(f"--{kind}.")):
                place = len(kept)
            if flag == "--config" and (value or equals):
                if value not in given.files:
                    given.files[value] = agentargs.nested(configfile.read(value))
                    _check_file(given, given.files[value])
                if found := _named_in(given.files[value], kind):  # it wins over what comes before it
                    lost = [one.partition("=")[0] for one in kept[max(place, 0) :] if one.startswith(f"--{kind}.")]
                    if lost and not chosen:
                        raise UserError(misplaced(lost[0], kind, found))
                    kept[place:place] = [chosen] if chosen else []
                    base, chosen, place = found, "", -1
                    name = base
                kept.append(f"{flag}={value}")
            elif flag == f"--{kind}" and value:
                name = name_of(kind, value)
                # another class than before must not inherit options that happen to have the same names
                spec = (
                    {"class_path": yamlforms.class_path(kind, name)}
                    if name == base
                    else yamlforms.spec_of(kind, name, {})
                )
                chosen = f"{flag}={json.dumps(spec)}"
            else:
                kept.append(flag + equals + value)
        kept[place:place] = [chosen] if chosen else []
        rest = kept
        given.plugins[kind] = (name, yamlforms.own_options(kind, name))
    return rest


def _named_in(data: dict[str, Any], kind: Kind) -> str | None:
    """The plugin that a config file chooses."""
    spec = data.get(kind)
    name = spec.get("name", spec.get("class_path")) if isinstance(spec, dict) else spec
    return name_of(kind, name) if isinstance(name, str) else None


def _check_file(given: Given, data: dict[str, Any]) -> None:
    """Raise UserError for what a config file may not hold, before jsonargparse makes anything of it."""
    if "config" in data:
        raise UserError("--config cannot stand in a config file; give both files on the command line")
    known = [item.name for item in fields(FitConfig)]
    for key in data:
        if key.partition(".")[0] not in known:
            raise UserError(unknown(given, f"--{key}"))
    for item in fields(FitConfig):
        values = data.get(item.name)
        if not isinstance(values, dict):
            continue
        named = [values[key] for key in ("name", "class_path") if key in values]
        if item.name in GROUPS and not all(isinstance(name, str) and name for name in named):
            raise UserError(f"--{item.name} is {values!r}; give its name: sparsekit plugins list --kind {item.name}")
        group = item.default_factory
        known = [option.name for option in fields(group)] if is_dataclass(group) else list(values)
        for key in values:
            if key not in known or not isinstance(key, str):
                raise UserError(unknown(given, f"--{item.name}.{key}"))
