"""What the rules on methods and on merges share: the class under test, its instances and its options."""

from __future__ import annotations

import inspect
from typing import Any, Generic, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from sparsekit.api import MergeStrategy, PruningMethod
from sparsekit.plugins.contract import BASES, defaults, faults
from sparsekit.plugins.registry import Kind
from sparsekit.testing.rules import Broken, Unreached, describe, need

P = TypeVar("P", PruningMethod, MergeStrategy)


class PluginCase(Generic[P]):
    """A class under test, with the options to make it with."""

    kind: Kind

    def __init__(self, cls: type[P], options: dict[str, Any]) -> None:
        self.cls: type[P] = cls
        self.options = options

    def make(self) -> P:
        """A new instance; Unreached where none can be made, which is `is_well_formed`'s to tell."""
        if not issubclass(self.cls, BASES[self.kind]):
            raise Unreached("it is of no kind that can be tried, see is_well_formed")
        try:
            return self.cls(**self.options)
        except Exception as error:
            raise Unreached("there is no instance, see is_well_formed") from error

    def check_form(self) -> None:
        """Raise Broken where the class cannot be used or made."""
        for fault in faults(self.cls, self.kind):
            raise Broken(f"{self.cls.__name__} {fault}")
        try:
            self.cls(**self.options)
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            raise Broken(f"{self.cls.__name__}({given}) raised {describe(error)}") from error

    def check_options(self) -> None:
        """Raise Broken where an option is not kept, or does not come back from YAML as it was."""
        instance = self.make()
        if type(instance).__init__ is object.__init__:
            return
        names = list(inspect.signature(self.cls).parameters)
        values = defaults(self.cls) | self.options
        for name in names:
            need(hasattr(instance, name), f"there is no self.{name}")
            kept = getattr(instance, name)
            need(_equal(kept, values[name]), f"self.{name} is {kept!r} where {name}={values[name]!r} was given")
        parser = ArgumentParser(exit_on_error=False)
        try:
            parser.add_class_arguments(self.cls, self.kind)
            text = yaml.safe_dump({self.kind: values})
            back = vars(parser.parse_string(text)[self.kind]) if names else {}
        except (yaml.YAMLError, ArgumentError, ValueError, TypeError) as error:
            raise Broken(f"its options {values} cannot be written to YAML and read again: {error}") from error
        for name in names:
            need(_equal(back[name], values[name]), f"{name}: {values[name]!r} comes back from YAML as {back[name]!r}")


def _equal(left: object, right: object) -> bool:
    """Equal values; YAML has lists, and no tuples."""
    as_list = [list(value) if isinstance(value, tuple) else value for value in (left, right)]
    return bool(as_list[0] == as_list[1])
