"""The parser of options that are dataclasses: plugins by name, YAML files, one-line errors."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml
from jsonargparse import (
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    set_dumper,
    set_loader,
    set_parsing_settings,
)
from jsonargparse.typing import register_type

from sparsekit.config import plugin_yaml, wandb_args, yaml_file, yaml_values
from sparsekit.config.checks import check
from sparsekit.config.messages import GROUPED, Given, begins, explain, no_mapping, no_value, unknown
from sparsekit.config.options import FitConfig, option_types
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUPS, Kind, discover, name_of
from sparsekit.plugins.signatures import options_of, unclear

DEFAULTS: dict[Kind, str] = {"method": "gmp", "merge": "uniform", "task": "classification"}
# by class, so that another package that claims one of these names does not stop a run that names neither
_DEFAULT_CLASSES = {
    "method": "sparsekit.methods.gmp.GMP",
    "merge": "sparsekit.merges.uniform.Uniform",
    "task": "sparsekit.tasks.classification.Classification",
}
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
    register_type(yaml_file.Quoted)
    set_loader(_MODE, yaml_file.parse_argument, exceptions=(yaml.YAMLError,))
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
    left = _canonical(argv)
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
    types = option_types(of)
    argv = _canonical(argv)
    for name, value in _pairs(argv):
        yaml_values.check_argument(types, name, value)
    # a W&B agent's JSON argument may hold aliases, and the value of one may look like a JSON argument
    argv = _canonical(wandb_args.plain(argv, types))
    known = [name for name in parser._option_string_actions if name.startswith("--") and not name.endswith(".help")]
    given = parser.given = Given(argv, known)
    try:
        for flag in (argument.partition("=")[0] for argument in argv):
            if re.fullmatch(r"--[\w.-]*\.(\..*)?", flag):  # no name between two dots, or after the last
                raise UserError(f"{flag!r} is no option: a name is missing at a dot; see --help")
        for name, value in _pairs(argv):
            yaml_values.check_number(types, name, value)
        return _parsed(of, parser, _expanded(argv, given))
    except UserError as error:
        raise given.located(error) from error


def _canonical(argv: Sequence[str]) -> list[str]:
    """Arguments under the one name that the parser knows: `--out` for `-o`, `--resume=true` for `--resume`."""
    found: list[str] = []
    left = list(argv)
    while left:
        flag, equals, value = re.sub(r"^-o(?=[^=])", "-o=", left.pop(0)).partition("=")
        if flag in _SWITCHES and not equals:
            equals, value = "=", left.pop(0) if left and left[0].lower() in ("true", "false") else "true"
        found.append(_ALIASES.get(flag, flag) + equals + value)
    return found


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names and values of all options with a value."""
    for argument, following in zip_longest(argv, argv[1:], fillvalue="--"):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and (equals or not following.startswith("--")):
            yield flag[2:], value if equals else following


def _parsed(of: type[T], parser: OptionParser, argv: Sequence[str]) -> T:
    try:
        found = parser.parse_args(argv)
        for kind, (name, _) in parser.given.plugins.items():
            own = found.get(f"{kind}.init_args")
            types = {o.name: o.annotation for p in discover().of(kind).get(name, ()) for o in options_of(p).values()}
            for option, value in vars(own).items() if own else ():
                if value is None and not re.search("None|Optional|Any", types.get(option, "Any")):
                    raise UserError(no_value(f"{kind}.{option}"))
        values = parser.instantiate(found)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # of a plugin's constructor
        raise UserError(explain(parser.given, str(error), error)) from error
    return of(**{key: value for key, value in vars(values).items() if key != "config"})


def _expanded(argv: Sequence[str], given: Given) -> list[str]:
    """The arguments with plugins as classes, and what config files hold in place of their paths.

    A plugin's class, with all its options, comes first. The options that a file gives to its plugin hold for that
    plugin alone; those of the command line, and of a file that names no plugin, hold for the plugin that is run.
    """
    chosen = dict.fromkeys(GROUPS, "")  # the names on the command line, behind the files that name a plugin
    filed: dict[Kind, tuple[str, dict[str, Any]]] = {}  # the plugins that files name, and their options
    own: dict[Kind, list[str]] = {kind: [] for kind in GROUPS}
    others: list[str] = []
    left = list(argv)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        kind = next((kind for kind in GROUPS if begins(flag, f"--{kind}")), None)
        is_file = flag == "--config" and flag in given.known
        if (kind or is_file) and not equals and left and not left[0].startswith("--"):
            equals, value = "=", left.pop(0)
        if is_file and equals:
            options = _read(value, given)
            others += _inline({name: v for name, v in options.items() if not begins(name, *GROUPS)})
            for kind in GROUPS:
                theirs = {name: v for name, v in options.items() if name.startswith(f"{kind}.")}
                if kind not in options:
                    own[kind] += [
                        f"--{n}={v if isinstance(v, str) else plugin_yaml.text(v)}" for n, v in theirs.items()
                    ]
                    continue
                if own[kind] and not chosen[kind]:
                    flag, name = own[kind][0].partition("=")[0], options[kind]
                    raise UserError(f"{flag} stands before the --config that chooses {kind} {name!r}; put it behind")
                filed[kind] = options[kind], {name.partition(".")[2]: v for name, v in theirs.items()}
                chosen[kind], own[kind] = "", []
        elif kind and flag == f"--{kind}" and value:
            chosen[kind] = value
        else:
            (own[kind] if kind else others).append(flag + equals + value)
    classes = []
    for kind in GROUPS:
        base, options = filed.get(kind, (DEFAULTS[kind], {}))
        name = name_of(kind, chosen[kind] or base)
        if kind in filed:  # also where another plugin replaces it: jsonargparse checks its options
            classes.append(f"--{kind}={plugin_yaml.text(plugin_yaml.spec_of(kind, name_of(kind, base), options))}")
        if chosen[kind] and (kind not in filed or name != name_of(kind, base)):
            classes.append(f"--{kind}={plugin_yaml.text(plugin_yaml.spec_of(kind, name, {}))}")
        plugins = discover().of(kind).get(name, ())
        if len(plugins) == 1 and unclear(plugins[0]):
            with suppress(UserError):  # it is imported a little later anyway, and what is wrong is said then
                plugins[0].load()
        given.plugins[kind] = name, list(options_of(plugins[0])) if len(plugins) == 1 else []
    return [*classes, *(argument for kind in GROUPS for argument in own[kind]), *others]


def _inline(options: dict[str, Any]) -> list[str]:
    """Options by dotted names as the argument `--config`, in YAML; no argument where there are none."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        group, dot, member = name.partition(".")
        (nested.setdefault(group, {}) if dot else nested)[member or group] = value
    return [f"--config={plugin_yaml.text(nested)}"] if nested else []


def _read(path: str, given: Given) -> dict[str, Any]:
    """The options of a config file by their dotted names; raises UserError for what a file may not hold."""
    typed, texts = map(plugin_yaml.flat, yaml_file.read_both(path))
    options = given.files[path] = dict(typed)
    types = option_types(FitConfig)
    if "config" in options:
        raise UserError("--config cannot stand in a config file; give both files on the command line")
    counts = Counter(name for name, _ in typed)
    for (name, value), (_, text) in zip(typed, texts, strict=True):
        group, dot, _ = name.partition(".")
        if group not in GROUPS and name not in types:
            raise UserError(unknown(given, f"--{name}"))
        if counts[name] > 1 or (dot and group not in GROUPS and group in options):
            raise UserError(f"--{name} is given twice in one file; give it once")
        options[name] = yaml_values.meant(types, name, value, text)
        if name in GROUPS and (not isinstance(value, str) or not value):
            raise UserError(f"--{name} is {text!r}; give its name: sparsekit plugins list --kind {name}")
        if name in types and value is None and type(None) not in get_args(types[name]):
            raise UserError(no_value(name))
        if is_dataclass(types.get(name)) and not isinstance(value, str):
            raise UserError(no_mapping(name, value))
    return options
