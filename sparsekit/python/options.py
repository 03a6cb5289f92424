"""Keywords of a Python call to the options of a command: the same names, checks and messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.config import parser
from sparsekit.config.checks import check
from sparsekit.config.messages import begins
from sparsekit.config.options import FitConfig, chosen_kinds, option_names, plugin_name
from sparsekit.config.plugin_yaml import flat
from sparsekit.config.wandb_args import as_flags
from sparsekit.data.examples import Data
from sparsekit.errors import RunError, UserError, first_line, nearest
from sparsekit.plugins.contract import faults
from sparsekit.plugins.objects import brought, path_of, record_of
from sparsekit.plugins.registry import GROUPS, Kind, option_of

T = TypeVar("T")
_PLAIN = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call's options, and the objects that its keywords brought.

    Attributes:
        config: The options, checked.
        objects: Models, data, tasks and the like by the option and name that stand for them, as
            `plugins.objects.brought` takes them.
    """

    config: T
    objects: Mapping[str, Any]


def read(
    of: type[T],
    keywords: Mapping[str, Any],
    run: Mapping[str, Any] = MappingProxyType({}),
    known: Mapping[str, Any] = MappingProxyType({}),
) -> Call[T]:
    """Read keywords as the options of a command.

    Args:
        of: The dataclass of the command's options.
        keywords: Options by name, nested (`replicas={"count": 3}`) or dotted; plugins by name or as objects; `model`
            and `data` by name, as objects, or as functions that make them; allocations, schedules and formats by name
            or as objects.
        run: Options of a saved model's run, over which the keywords hold.
        known: Objects that the run's own call brought.

    Raises:
        UserError: a keyword is wrong; the message names it.
    """
    options, objects, plugins, run = dict(keywords), {}, {}, dict(run)
    for kind in GROUPS:
        if (plugin := plugin_object(kind, options, run, known)) is None:
            continue
        plugins[kind] = plugin
        run = {name: value for name, value in run.items() if not begins(name, kind)}  # the object stands for these
        if kind == "task":
            objects[f"--task {plugin_name(kind, type(plugin))}"] = plugin
    for group in ("model", "data"):
        value = options.pop(group, None)
        if isinstance(value, Mapping):
            rest: dict[str, Any] = dict(value)
            value = rest.pop("name", None)
            options |= {group: rest} if rest else {}
        if value is None and not isinstance(options.get(f"{group}.name"), (str, type(None))):
            value = options.pop(f"{group}.name")
        if value is None:
            continue
        if isinstance(value, tuple) and all(hasattr(part, "shape") for part in value):
            raise UserError(f"{group}: a pair of tensors is one split; give sparsekit.Data(train=(x, y), test=…)")
        if f"{group}.name" in options:
            raise UserError(f"{group} and {group}.name both say which; give one of them")
        if not isinstance(value, str):
            made = "" if hasattr(value, "__qualname__") else ".<object>"  # its class alone could not make it again
            name = "__main__:data" if isinstance(value, (Data, tuple)) else path_of(value) + made
            objects[f"--{group}.name {name}"] = value
            value = name
        options[f"{group}.name"] = value
    for name, kind in chosen_kinds(of).items():
        group, dot, member = name.partition(".")
        holder = options[group] if dot and isinstance(options.get(group), Mapping) else {}
        if member in holder and name in options:
            raise UserError(f"{name} is given twice; give it once")
        value = holder.get(member, options.get(name))
        if isinstance(value, (*_PLAIN, list, tuple, Mapping)) or not (kind == "format" or callable(value)):
            continue
        path = record_of(value)
        objects[f"{option_of(kind)} {path}"] = value
        options |= {group: {**holder, member: path}} if member in holder else {name: path}
    with keyword_names(), brought({**known, **objects}):
        plain = {name: _plain(name, value) for name, value in options.items()}
        names = Counter(name for name, _ in flat(plain))
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{twice[0]} is given twice; give it once")
        arguments = as_flags(plain)
        config = parser.parse_as(of, parser.build("sparsekit", "", of), arguments, run)
        if plugins:
            config = replace(config, **plugins)  # type: ignore[type-var]
        if isinstance(config, FitConfig):
            check(config)
    return Call(config, objects)


@contextmanager
def keyword_names() -> Iterator[None]:
    """Name keywords where messages name options: `sparsity` for `--sparsity`."""
    try:
        yield
    except (UserError, RunError) as error:
        raise type(error)(in_keywords(str(error)).removesuffix("; see help")) from error


def in_keywords(message: str) -> str:
    """A message that names keywords where it named options: `sparsity` for `--sparsity`."""
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", message)


def plugin_object(
    kind: Kind, options: dict[str, Any], run: Mapping[str, Any], known: Mapping[str, Any]
) -> PruningMethod | MergeStrategy | Task | None:
    """Take the object or class of a kind out of the keywords, else that of the run's own call; None where neither is.

    Raises:
        UserError: it is none of the kind, cannot be made, or options stand beside it, which it could not take.
    """
    value = options.get(kind)
    own = {name: option for name, option in options.items() if name.startswith(f"{kind}.")}
    if isinstance(value, Mapping):
        own |= {f"{kind}.{name}": option for name, option in value.items() if name != "name"}
        value = value.get("name", value.get("class_path"))
    if value is None:
        value = known.get(f"--{kind} {run.get(kind)}")
    if value is None or isinstance(value, str):
        return None
    options.pop(kind, None)
    cls: type = value if isinstance(value, type) else type(value)
    for fault in faults(cls, kind, listed=False):
        raise UserError(f"{kind}: {cls.__name__} {fault}")
    for name, option in own.items():
        short = name.partition(".")[2]
        what = f"the class {cls.__name__}" if isinstance(value, type) else f"an object of {cls.__name__}"
        fix = f"give it to the object: {kind}={cls.__name__}({short}={option!r})"
        if short not in (takes := option_names(cls)):
            fix = f"{cls.__name__} has no option {short!r}; leave it out.{nearest(short, takes)}"
        raise UserError(f"{name} is {option!r}, but {kind} is {what}, not a name; {fix}")
    if not isinstance(value, type):
        return value  # type: ignore[no-any-return]
    theirs = {name.partition(".")[2]: option for name, option in run.items() if name.startswith(f"{kind}.")}
    try:
        made = cls(**theirs if run.get(kind) == plugin_name(kind, cls) else {})
    except Exception as error:  # a user's class may raise anything
        raise UserError(f"{kind}: {cls.__name__} cannot be made ({first_line(error)}); give an object of it") from error
    return made  # type: ignore[no-any-return]


def _plain(keyword: str, value: Any) -> Any:
    """A value as YAML has it: paths as text, numbers of numpy and torch as Python's, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{keyword}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(keyword, inner) for inner in value]
    if isinstance(value, PathLike):
        return fspath(value)
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(value, _PLAIN):
        raise UserError(f"{keyword} is {value} ({type(value).__name__}); give text, a number, true or false, or a list")
    return value
