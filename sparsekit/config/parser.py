"""The parser of options that are dataclasses: plugins by name, YAML files, one-line errors."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import zip_longest
from operator import attrgetter
from types import MappingProxyType
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

from sparsekit.config import data_sets, plugin_yaml, wandb_args, yaml_file, yaml_values
from sparsekit.config.checks import check
from sparsekit.config.messages import GROUPED, Given, begins, explain, no_mapping, no_value, unknown
from sparsekit.config.options import DataConfig, FitConfig, chosen_kinds, option_types
from sparsekit.errors import UserError
from sparsekit.plugins.choices import check_choice, known_names
from sparsekit.plugins.objects import import_modules, is_brought
from sparsekit.plugins.registry import GROUP_OF_OPTIONS, GROUPS, Kind, adopt, discover, name_of
from sparsekit.plugins.signatures import options_of, unclear

DEFAULTS: dict[Kind, str] = {"method": "gmp", "merge": "uniform", "task": "classification"}
# by class, so that another package that claims one of these names does not stop a run that names neither
_DEFAULT_CLASSES = {
    "method": "sparsekit.methods.gmp.GMP",
    "merge": "sparsekit.merges.uniform.Uniform",
    "task": "sparsekit.tasks.classification.Classification",
}
_CHOOSING: dict[str, Kind] = {**{kind: kind for kind in GROUPS}, "data.name": "dataset"}
"""The options that choose a plugin, and its kind."""
_MODE = "sparsekit"
_ALIASES = {"--prune-again": "--prune_again", "-o": "--out", "--output": "--out", "--import": "--import+"}
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
    _allow_plugins()
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
    _leave_out(parser, "--data.options")  # these are options of their own
    chosen = chosen_kinds(of)
    for action in parser._actions:
        choices = [
            get_args(part) for part in get_args(getattr(action, "_typehint", None)) if get_origin(part) is Literal
        ]
        if action.dest in chosen:
            choices = [tuple(known_names(chosen[action.dest]))]
        if choices:  # jsonargparse shows them only where there is no None beside them
            action.metavar = f"{{{','.join(map(str, choices[0]))}}}"
        if action.dest in GROUPED:
            action.metavar, action.help = "MAPPING", f"All of --{action.dest}.* at once, in YAML or as a file of it."
        if action.dest == "distill":
            action.metavar, action.help = "DIR", "Short for --distill.model DIR."
        if action.dest == "imports":
            action.metavar, action.option_strings = "MODULE", ["--import", "--imports"]
            parser._option_string_actions |= {"--import": action, "--import+": action}
    parser.set_defaults({kind: {"class_path": _DEFAULT_CLASSES[kind]} for kind in kinds})
    helps = ", ".join(f"--{group}.help NAME" for group in (*kinds, "data"))
    parser.epilog = f"A plugin's own options: {helps}; of all: sparsekit plugins list."
    return parser


def _leave_out(parser: OptionParser, option: str) -> None:
    """Take an option of a dataclass out of its parser."""
    action: Any = parser._option_string_actions[option]
    for name in action.option_strings:  # in place: argparse's groups share the mapping
        del parser._option_string_actions[name]
    action.container._remove_action(action)


def _allow_plugins() -> None:
    """Let jsonargparse import the packages of plugins, and no others."""
    targets = [plugin.target for kind in GROUPS for found in discover().of(kind).values() for plugin in found]
    packages = {target.partition(":")[0].partition(".")[0] for target in targets}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(packages))


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
    import_modules(config.imports)
    try:
        check(config)
    except UserError as error:
        raise parser.given.located(error) from error
    return config


def parse_as(
    of: type[T], parser: OptionParser, argv: Sequence[str], run: Mapping[str, Any] | None = MappingProxyType({})
) -> T:
    """The options as an instance of the dataclass that the parser was built of; raises UserError.

    Args:
        of: The dataclass.
        parser: The parser.
        argv: The arguments.
        run: Options of a saved model's run by dotted names, over which the arguments hold; None while it is not known
            which run, and so the options of its data set cannot be looked at.
    """
    types = option_types(of)
    argv = _canonical(argv)
    for name, value in _pairs(argv):
        _adopt(name, value)
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
            _adopt(name, value)
            yaml_values.check_number(types, name, value)
        config = _parsed(of, parser, _expanded(argv, parser, run))
        for name, kind in chosen_kinds(of).items():
            if (choice := attrgetter(name)(config)) is not None:
                check_choice(kind, choice, f"--{name}")
        return config
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


def _adopt(name: str, value: object) -> None:
    """Take a `module:name` that an option gives for a plugin."""
    if name in _CHOOSING and isinstance(value, str):
        adopt(_CHOOSING[name], value)


def _parsed(of: type[T], parser: OptionParser, argv: Sequence[str]) -> T:
    try:
        found = parser.parse_args(argv)
        options: dict[str, Any] = {}
        for kind, (name, own_names) in parser.given.plugins.items():
            group = GROUP_OF_OPTIONS.get(kind, kind)
            own = vars(found.get(f"{kind}.init_args") or argparse.Namespace())
            if kind not in GROUPS:
                own = options = {option: found.pop(f"{group}.{option}") for option in own_names}
            plugins = discover().of(kind).get(name.partition("/")[0], ())
            types = {o.name: o.annotation for p in plugins for o in options_of(p).values()}
            for option, value in own.items():
                if value is None and not re.search("None|Optional|Any", types.get(option, "Any")):
                    raise UserError(no_value(f"{group}.{option}"))
        values = parser.instantiate(found)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # of a plugin's constructor
        raise UserError(explain(parser.given, str(error), error)) from error
    config = {key: value for key, value in vars(values).items() if key != "config"}
    return of(**config | {"data": replace(config["data"], options=options)})


@dataclass
class _Choice:
    """Which plugin of a kind is chosen, and which options it is given.

    The options that a file gives to its plugin hold for that plugin alone; those of the command line, and of a file
    that names no plugin, hold for the plugin that is run.

    Attributes:
        option: The option that chooses it.
        base: Its name, in a file or else the default.
        filed: The options of the file or the run that names it; None where none does.
        chosen: The name on the command line, behind that file.
        own: The arguments that hold for the plugin that is run.
        recorded: Whether a run named it, whose plugin may be gone, and not a file.
    """

    option: str
    base: str
    filed: dict[str, Any] | None = None
    chosen: str = ""
    own: list[str] = field(default_factory=list)
    recorded: bool = False

    @property
    def name(self) -> str:
        """The name of the plugin that is run."""
        return self.chosen or self.base

    def has(self, name: str) -> bool:
        """Whether an option is the plugin's own."""
        return data_sets.is_own(name) if self.option == "data.name" else name.startswith(f"{self.option}.")

    def read(self, options: Mapping[str, Any], recorded: bool = False) -> None:
        """Take the options of a config file, or of a run, which recorded them."""
        theirs = {name: value for name, value in options.items() if self.has(name)}
        if self.option not in options:
            self.own += _as_arguments(theirs)
            return
        if self.own and not self.chosen:
            flag, name = self.own[0].partition("=")[0], options[self.option]
            what = self.option.partition(".")[0]
            raise UserError(f"{flag} stands before the --config that chooses {what} {name!r}; put it behind")
        self.base, self.filed, self.chosen, self.own = options[self.option], theirs, "", []
        self.recorded = recorded


def _as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options by their dotted names as arguments."""
    return [
        f"--{name}={value if isinstance(value, str) else plugin_yaml.text(value)}" for name, value in options.items()
    ]


def _expanded(argv: Sequence[str], parser: OptionParser, run: Mapping[str, Any] | None) -> list[str]:
    """The arguments with plugins as classes, and what config files hold in place of their paths.

    A plugin's class, with all its options, comes first, then those of a run. A data set's own options are added to the
    parser.
    """
    given = parser.given
    choices = {kind: _Choice(kind, DEFAULTS[kind]) for kind in GROUPS}
    data = _Choice("data.name", DataConfig.name)
    everyone = [*choices.values(), data]
    for name, value in (run or {}).items():
        _adopt(name, value)
    for choice in everyone:
        choice.read(run or {}, recorded=True)

    def shared(options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that are no plugin's own, nor choose one."""
        return {n: v for n, v in options.items() if not begins(n, *GROUPS) and not data.has(n)}

    others = _as_arguments(shared(run or {}))
    left = list(argv)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        name = flag[2:] if flag.startswith("--") else ""  # a value may begin as an option of a plugin does
        choosing = next((choice for choice in everyone if name == choice.option or choice.has(name)), None)
        is_file = flag == "--config" and flag in given.known
        if (choosing or is_file) and not equals and left and not left[0].startswith("--"):
            equals, value = "=", left.pop(0)
        if is_file and equals:
            options = _read(value, given)
            others += _inline(shared(options))
            for each in everyone:
                each.read(options)
            continue
        if choosing and name == choosing.option and value:
            choosing.chosen = value
        if choosing is None or name == data.option:
            others.append(flag + equals + value)
        elif name != choosing.option or not value:
            choosing.own.append(flag + equals + value)
    classes = [argument for kind, choice in choices.items() for argument in _class(kind, choice, given)]
    if run is not None or data.chosen:
        others += _of_data(data, parser)
    return [*classes, *(argument for choice in choices.values() for argument in choice.own), *others]


def _class(kind: Kind, choice: _Choice, given: Given) -> list[str]:
    """A plugin's class as an argument; behind that of a file, which another replaces, since its options are checked.

    Of a run, whose options were checked once, none is looked for that another replaces.
    """
    base, name, found = name_of(kind, choice.base), name_of(kind, choice.name), list[str]()
    _allow_plugins()
    if choice.filed is not None and (name == base or not choice.recorded):
        theirs = {option.partition(".")[2]: value for option, value in choice.filed.items()}
        found.append(f"--{kind}={plugin_yaml.text(plugin_yaml.spec_of(kind, base, theirs))}")
    if choice.chosen and (choice.filed is None or name != base):
        found.append(f"--{kind}={plugin_yaml.text(plugin_yaml.spec_of(kind, name, {}))}")
    plugins = discover().of(kind).get(name, ())
    if len(plugins) == 1 and unclear(plugins[0]):
        with suppress(UserError):  # it is imported a little later anyway, and what is wrong is said then
            plugins[0].load()
    given.plugins[kind] = name, list(options_of(plugins[0])) if len(plugins) == 1 else []
    return found


def _of_data(choice: _Choice, parser: OptionParser) -> list[str]:
    """The arguments of a data set's own options, which are added to the parser."""
    filed = choice.filed if choice.filed and choice.name == choice.base else {}
    function = data_sets.find_data(choice.name, [*filed, *choice.own])
    if function:
        data_sets.add_options(parser, function)
        parser.given.known = [*parser.given.known, *(f"--data.{name}" for name in function.options)]
    elif is_brought("--data.name", choice.name):
        filed = {name: value for name, value in filed.items() if not data_sets.is_own(name)}  # data was given, made
    parser.given.plugins["dataset"] = choice.name, list(function.options) if function else []
    return [*_as_arguments(filed), *choice.own]


def _as_list(item: tuple[str, Any]) -> tuple[str, Any]:
    """An option of a config file, `import: MODULE` as `imports: [MODULE]`."""
    name, value = item
    if name not in ("import", "imports"):
        return item
    return "imports", [value] if isinstance(value, str) and value else value


def _inline(options: dict[str, Any]) -> list[str]:
    """Options by dotted names as the argument `--config`, in YAML; no argument where there are none."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        group, dot, member = name.partition(".")
        (nested.setdefault(group, {}) if dot else nested)[member or group] = value
    return [f"--config={plugin_yaml.text(nested)}"] if nested else []


def _read(path: str, given: Given) -> dict[str, Any]:
    """The options of a config file by their dotted names; raises UserError for what a file may not hold."""
    typed, texts = (list(map(_as_list, plugin_yaml.flat(values))) for values in yaml_file.read_both(path))
    for name, value in typed:
        _adopt(name, value)
    options = given.files[path] = dict(typed)
    types = option_types(FitConfig)
    if "config" in options:
        raise UserError("--config cannot stand in a config file; give both files on the command line")
    counts = Counter(name for name, _ in typed)
    for (name, value), (_, text) in zip(typed, texts, strict=True):
        group, dot, _ = name.partition(".")
        if group not in GROUPS and name not in types and not data_sets.is_own(name):
            raise UserError(unknown(given, f"--{name}"))
        if counts[name] > 1 or (dot and group not in GROUPS and group in options):
            raise UserError(f"--{name} is given twice in one file; give it once")
        options[name] = yaml_values.meant(types, name, value, text)
        if (kind := _CHOOSING.get(name)) and (not isinstance(value, str) or not value):
            raise UserError(f"--{name} is {text!r}; give its name: sparsekit plugins list --kind {kind}")
        if name in types and value is None and type(None) not in get_args(types[name]):
            raise UserError(no_value(name))
        if is_dataclass(types.get(name)) and not isinstance(value, str):
            raise UserError(no_mapping(name, value))
    return options
