"""The parser of options that are dataclasses: plugins by name, YAML files, one-line errors."""

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

from sparsekit.config import plugin_yaml, wandb_args, yaml_file
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
_ALIASES = {"--prune-again": "--prune_again", "-o": "--out", "--output": "--out"}
_SWITCHES = ("--resume", "--measure")
_WITHOUT_VALUE = ("-h", "--help", "--print_config")
T = TypeVar("T")


class OptionParser(ArgumentParser):
    """A parser that raises UserError, with one line, for bad options."""

    given = Given()  # jsonargparse makes a parser of this class for a plugin's own options, too

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError with a line that names the option and the fix."""
        raise UserError(explain(self.given, message, ex)) from ex


class _Help(DefaultHelpFormatter):
    """Help without Python's type names, and with the names of the installed plugins."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest in GROUPS:
            names = ", ".join(discover().of(action.dest))
            return f"{action.help} Installed: {names}. (default: {DEFAULTS[action.dest]})"
        types = r" ?\((?:required, )?type: .*?(?:, default: (.*))?\)$"
        return re.sub(types, r" (default: \1)", super()._get_help_string(action), flags=re.S)


def build(prog: str, description: str, of: type = FitConfig, usage: str = "") -> OptionParser:
    """The parser of one command, whose options are the fields of a dataclass, by default those of `fit`."""
    set_loader(_MODE, plugin_yaml.load, exceptions=(yaml.YAMLError,))
    set_dumper(_MODE, plugin_yaml.dump)
    packages = {plugin.target.partition(":")[0].partition(".")[0] for plugin in discover().plugins if not plugin.flaw}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(packages))
    parser = OptionParser(
        prog=prog, description=description, parser_mode=_MODE, allow_abbrev=False, formatter_class=_Help
    )
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


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments; and options, each followed by its value."""
    positional, options = [], []
    left = [_canonical(argument) for argument in argv]
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            positional.append(argument)
            continue
        options.append(argument)
        if "=" not in argument and argument not in _WITHOUT_VALUE and left:
            options.append(left.pop(0))
    return positional, options


def parse(parser: OptionParser, argv: Sequence[str]) -> FitConfig:
    """The options of `fit` and `plan`, checked; raises UserError."""
    config = parse_as(FitConfig, parser, argv)
    try:
        check(config)
    except UserError as error:
        raise parser.given.located(error) from error
    return config


def parse_as(of: type[T], parser: OptionParser, argv: Sequence[str]) -> T:
    """The options as an instance of the dataclass that the parser was built of; raises UserError."""
    # a W&B agent's JSON argument may hold aliases, and the value of one may look like a JSON argument
    argv = [_canonical(argument) for argument in wandb_args.plain([_canonical(argument) for argument in argv])]
    known = [name for name in parser._option_string_actions if name.startswith("--") and not name.endswith(".help")]
    given = parser.given = Given(argv, known)
    try:
        for flag in (argument.partition("=")[0] for argument in argv):
            if re.fullmatch(r"--[\w.-]*\.(\..*)?", flag):  # no name between two dots, or after the last
                raise UserError(f"{flag!r} is no option: a name is missing at a dot; see --help")
        return _parsed(of, parser, _names_to_classes(argv, given))
    except UserError as error:
        raise given.located(error) from error


def _canonical(argument: str) -> str:
    """An argument under the one name that the parser knows: `--out` for `-o`, `--resume=true` for `--resume`."""
    if argument in _SWITCHES:
        return f"{argument}=true"
    flag, equals, value = re.sub(r"^-o(?=[^=])", "-o=", argument).partition("=")
    return _ALIASES.get(flag, flag) + equals + value


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
    except (ValueError, TypeError, OverflowError) as error:  # of a plugin's constructor
        raise UserError(explain(parser.given, str(error), error)) from error
    return of(**{key: value for key, value in vars(values).items() if key != "config"})


def _no_value_missing(found: Namespace, owner: Any, prefix: str = "--") -> None:
    """Raise UserError where YAML has a key without a value, unless the option may be None."""
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
    """The arguments with `--method NAME` as a class path, moved in front of the method's own options."""
    rest = list(argv)
    for kind in GROUPS:
        kept: list[str] = []
        base, chosen, place = DEFAULTS[kind], "", -1  # `place`: the index in `kept` at which the class goes in
        name = base
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if flag in (f"--{kind}", "--config") and (equals or rest):
                value = value if equals else rest.pop(0)
            if place < 0 and (flag == f"--{kind}" or flag.startswith(f"--{kind}.")):
                place = len(kept)
            if flag == "--config" and (value or equals):
                if value not in given.files:
                    given.files[value] = wandb_args.nested(yaml_file.read(value))
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
                # all its defaults, so that it inherits no option of the same name from another class
                spec = (
                    {"class_path": plugin_yaml.class_path(kind, name)}
                    if name == base
                    else plugin_yaml.spec_of(kind, name, {})
                )
                chosen = f"{flag}={json.dumps(spec)}"
            else:
                kept.append(flag + equals + value)
        kept[place:place] = [chosen] if chosen else []
        rest = kept
        given.plugins[kind] = (name, plugin_yaml.own_options(kind, name))
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
