"""The rules for a schedule's function, tried at many done fractions and lowest rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsekit.plugins.choices import call_faults
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of

_DONE = [i / 200 for i in range(201)]
_LOWS = (0.0, 0.01, 0.3, 1.0)


@dataclass(frozen=True)
class ScheduleCase:
    """A schedule's function."""

    function: Callable[..., Any]

    def rate(self, done: float, low: float) -> float:
        """The multiplier; raises Broken where the function raises, or returns no number."""
        if any(call_faults("schedule", self.function)):
            raise Skipped("it cannot be called, see takes_two_arguments")
        try:
            found = self.function(done, low)
        except Exception as error:
            raise Broken(f"{_at(done, low)} it raised {describe(error)}") from error
        need(
            isinstance(found, (float, int)) and not isinstance(found, bool),
            f"{_at(done, low)} it is {found!r} ({type(found).__name__}); give a float",
        )
        return float(found)


def _at(done: float, low: float) -> str:
    return f"at done={done:g} with low={low:g}"


def describes_itself(case: ScheduleCase) -> None:
    """The first line of the docstring says what `sparsekit plugins list` shows."""
    need(bool((case.function.__doc__ or "").strip()), "it has no docstring")


def takes_two_arguments(case: ScheduleCase) -> None:
    """It is called with (done, low), by position."""
    for fault in call_faults("schedule", case.function):
        raise Broken(fault)


def stays_between_0_and_1(case: ScheduleCase) -> None:
    """The multiplier of `--optimizer.lr`, the largest rate, is a number from 0 to 1, wherever training is."""
    for low in _LOWS:
        for done in _DONE:
            rate = case.rate(done, low)
            need(0.0 <= rate <= 1.0 + 1e-9, f"{_at(done, low)} it is {rate:g}; give a number from 0 to 1")


@after("stays_between_0_and_1")
def goes_from_1_to_low(case: ScheduleCase) -> None:
    """It is 1 at 0 and `low`, which is `--optimizer.min_lr`, at 1; one that never falls is 1 throughout."""
    for low in _LOWS:
        first, last = case.rate(0.0, low), case.rate(1.0, low)
        need(math.isclose(first, 1.0, abs_tol=1e-6), f"{_at(0.0, low)} it is {first:g}; give 1")
        flat = all(case.rate(done, low) == 1.0 for done in _DONE)
        need(flat or math.isclose(last, low, abs_tol=1e-6), f"{_at(1.0, low)} it is {last:g}; give low")


def gives_the_same_again(case: ScheduleCase) -> None:
    """It depends on its arguments alone: planning, every replica and a run that is resumed call it in any order."""
    first = {(done, low): case.rate(done, low) for low in _LOWS for done in _DONE}
    for (done, low), rate in reversed(first.items()):
        again = case.rate(done, low)
        need(again == rate or (math.isnan(again) and math.isnan(rate)), f"{_at(done, low)} it is {rate}, then {again}")


SCHEDULE_RULES = rules_of(globals())
