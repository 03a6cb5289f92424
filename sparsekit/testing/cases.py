"""What plugins of all kinds have in common: the class under test, and the rules on its form and its options."""

from __future__ import annotations

import inspect
import re
from typing import Any, Generic, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.errors import UserError
from sparsekit.plugins.choices import check_choice
from sparsekit.plugins.contract import BASES, defaults, faults
from sparsekit.plugins.registry import Kind
from sparsekit.testing.rules import Broken, Skipped, describe, need, rules_of

P = TypeVar("P", PruningMethod, MergeStrategy, Task)


class PluginCase(Generic[P]):
    """A class under test, and the options to make it with."""

    kind: Kind

    def __init__(self, cls: type[P], options: dict[str, Any] | None = None) -> None:
        self.cls: type[P] = cls
        self.options = options or {}
        self._tried: set[str] = set()

    def make(self) -> P:
        """A new instance; raises Skipped where none can be made, which `is_well_formed` reports."""
        try:
            if not issubclass(self.cls, BASES[self.kind]):
                raise TypeError(f"{self.cls.__name__} is no {self.kind}")
            if issubclass(self.cls, PruningMethod):
                check_choice("allocation", str(self.cls.allocation), "its allocation")
            return self.cls(**self.options)
        except Exception as error:
            raise Skipped("no instance can be made, see is_well_formed") from error

    def probe(self, instance: P) -> None:
        """Try what an instance with odd options does, cheaply; raises whatever goes wrong, Broken for bad values."""
        raise NotImplementedError

    def try_once(self, what: str, rule: str) -> None:
        """Raise Skipped where this was called before. A cached property that calls it fails for one rule only."""
        if what in self._tried:
            raise Skipped(f"{what} failed, see {rule}")
        self._tried.add(what)


def is_well_formed(case: PluginCase[Any]) -> None:
    """The class subclasses PruningMethod, MergeStrategy or Task, defines what that requires, has a docstring, and names
    and annotates every option. A method's `allocation` is a known one; a merge's `max_replicas` is None or 1 and more,
    its `average_from` None or a fraction from 0 to below 1, its `average_decay` from 0 to 1; a task's `score_name` is
    one word other than `loss`.
    """
    for fault in faults(case.cls, case.kind):
        raise Broken(f"{case.cls.__name__} {fault}")
    try:
        instance = case.cls(**case.options)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in case.options.items())
        raise Broken(f"{case.cls.__name__}({given}) raised {describe(error)}") from error
    if isinstance(instance, PruningMethod):
        try:
            check_choice("allocation", str(case.cls.allocation), f"{case.cls.__name__}.allocation")
        except UserError as error:
            raise Broken(str(error)) from error
    elif isinstance(instance, Task):
        name = getattr(case.cls, "score_name", None)
        word = isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*", name) and name != "loss"
        need(bool(word), f"{case.cls.__name__}.score_name is {name!r}; give a word such as 'mAP'")
    else:
        limit, start, decay = case.cls.max_replicas, instance.average_from, instance.average_decay
        need(limit is None or (type(limit) is int and limit >= 1), f"max_replicas is {limit!r}")
        need(start is None or 0.0 <= start < 1.0, f"average_from is {start!r}")
        need(isinstance(decay, float | int) and 0.0 <= decay <= 1.0, f"average_decay is {decay!r}")


def keeps_its_options(case: PluginCase[Any]) -> None:
    """Every option is kept under its own name, as it was given, and can be written to config.yaml and read again."""
    instance = case.make()
    if type(instance).__init__ is object.__init__:
        return
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(case.cls).parameters.values()):
        raise Skipped("its options have no names, see is_well_formed")
    values = defaults(case.cls) | case.options
    for name in inspect.signature(case.cls).parameters:
        need(hasattr(instance, name), f"there is no self.{name}")
        kept = getattr(instance, name)
        need(_equal(kept, values[name]), f"self.{name} is {kept!r} where {name}={values[name]!r} was given")
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(case.cls, case.kind)
        back = vars(parser.parse_string(yaml.safe_dump({case.kind: values}))[case.kind]) if values else {}
    except (yaml.YAMLError, ArgumentError, ValueError, TypeError) as error:
        raise Broken(f"its options {values} cannot be written to YAML and read again: {error}") from error
    for name, value in values.items():
        need(_equal(back[name], value), f"{name}: {value!r} comes back from YAML as {back[name]!r}")


def _equal(left: object, right: object) -> bool:
    """Whether two values are equal; tuples equal lists, since YAML has lists alone."""
    left, right = (list(value) if isinstance(value, tuple) else value for value in (left, right))
    return bool(left == right)


COMMON_RULES = rules_of(globals())
