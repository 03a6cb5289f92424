"""The rule on an option's range, for plugins of all kinds: values that no run can use are refused by name."""

from __future__ import annotations

import inspect
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsekit.errors import RunError, UserError
from sparsekit.plugins.contract import defaults
from sparsekit.testing.cases import PluginCase
from sparsekit.testing.rules import Broken, after, describe, need, rules_of

BAD: dict[str, tuple[float, ...]] = {"float": (math.nan, math.inf, -1.0, 0.0, 1e9), "int": (-1, 0, 100_000)}
SECONDS = 1.0
"""What takes longer is taken for fine: a large number may be asked for."""


@after(
    "is_well_formed", "keeps_its_options", "plans_add_up", "prunes_exactly", "hooks_follow_from_the_step",
    "soups_are_whole", "suits_some_examples",
)  # fmt: skip
def refuses_bad_options(case: PluginCase[Any]) -> None:
    """A number that an option cannot take is refused with a ValueError that names the option. NaN always; infinity, -1,
    0 and a huge number if they break what follows: a plan, a pruning, a hook, a merge or a loss that fails or is not
    finite. A run that such a number only spoils, as a large factor does, is an answer of its own.
    """
    case.make()
    for name, kind in _numbers(case):
        for value in BAD[kind]:
            what = f"{name}={value:g} is taken"
            fix = f"refuse it in __init__: ValueError('--{case.kind}.{name} is {value:g}; give …')"
            try:
                instance = case.cls(**{**case.options, name: value})
            except ValueError as error:
                need(name in str(error), f"{name}={value:g} is refused with {str(error)!r}, without its name; {fix}")
                continue
            except Exception as error:
                raise Broken(f"{name}={value:g} raises {describe(error)}; {fix}") from error
            need(not math.isnan(value), f"{what}; {fix}, and mind that NaN is neither below nor above a number")
            try:
                with _seconds(SECONDS):
                    case.probe(instance)
            except TimeoutError:
                continue
            except (Broken, ValueError, RunError, UserError) as error:
                said = str(error) if isinstance(error, Broken) else describe(error)
                need(isinstance(error, (ValueError, RunError)) and name in said, f"{what}, and then: {said}\n{fix}")
            except Exception as error:
                raise Broken(f"{what}, and then: {describe(error)}\n{fix}") from error


def _numbers(case: PluginCase[Any]) -> Iterator[tuple[str, str]]:
    """The options that take one number, and whether it is whole."""
    if case.cls.__init__ is object.__init__:
        return
    values = defaults(case.cls) | case.options
    for name, parameter in inspect.signature(case.cls).parameters.items():
        annotation = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
        plain = {part.strip() for part in str(annotation).replace("Optional", "").strip("[]").split("|")} - {"None"}
        if len(plain) == 1 and (kind := plain.pop()) in BAD and name in values:
            yield name, kind


@contextmanager
def _seconds(limit: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds, where a signal can be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*given: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


OPTION_RULES = rules_of(globals())
