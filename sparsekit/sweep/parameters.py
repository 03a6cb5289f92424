"""One parameter of a sweep: every value for a grid, or one value at random.

The names and definitions are W&B's: https://docs.wandb.ai/guides/sweeps/sweep-config-keys
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from sparsekit.errors import UserError, nearest

MAX_RUNS = 10_000
"""The most runs of a sweep, and so the most values of one parameter in a grid."""
_KEYS = ("value", "values", "min", "max", "q", "distribution")


def _uniform(chance: random.Random, low: float, high: float) -> float:
    return low + (high - low) * chance.random()


_DRAWS: dict[str, Callable[[random.Random, float, float], float]] = {
    "uniform": _uniform,
    "q_uniform": _uniform,
    "int_uniform": lambda chance, low, high: chance.randint(int(low), int(high)),
    "log_uniform": lambda chance, low, high: math.exp(_uniform(chance, low, high)),
    "log_uniform_values": lambda chance, low, high: math.exp(_uniform(chance, math.log(low), math.log(high))),
}
DISTRIBUTIONS = ("constant", "categorical", *_DRAWS)


class Parameter:
    """One parameter.

    Args:
        name: Dotted name of the option.
        spec: Its mapping in the sweep file, such as `{values: [1, 2]}`.

    Attributes:
        name: As above.
        distribution: One of `DISTRIBUTIONS`.

    Raises:
        UserError: the mapping is wrong, or needs what only W&B has.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name, self._spec = name, {"q": 1.0, **spec}
        for key in spec:
            if key not in _KEYS:
                known = f"one of {', '.join(_KEYS)}.{nearest(str(key), _KEYS)}"
                other = f"write {name}.OPTION for each option" if key == "parameters" else known
                raise self._error(f"{key!r} is not supported here; use `wandb agent`, or {other}")
        self.distribution = self._distribution(spec)
        if self.distribution == "categorical" and not (isinstance(spec["values"], list) and spec["values"]):
            raise self._error(f"values is {spec['values']!r}; give a list such as [1, 2]")
        if self.distribution in _DRAWS:
            self._check_numbers()

    @property
    def varies(self) -> bool:
        """Whether the value is part of a run's name; also for a list of one value, which may grow later."""
        return self.distribution != "constant"

    def all(self) -> list[Any]:
        """Every value, for a grid.

        Raises:
            UserError: there is no end of them, or too many.
        """
        if self.distribution == "constant":
            return [self._spec["value"]]
        if self.distribution == "categorical":
            return list(self._spec["values"])
        if self.distribution not in ("int_uniform", "q_uniform"):
            raise self._error(f"a grid cannot hold {self.distribution}; give values, or method: random")
        low, high, step = (self._spec[key] for key in ("min", "max", "q"))
        if (high - low) / step >= MAX_RUNS:
            raise self._error(f"more than {MAX_RUNS:,} values; give fewer, or method: random")
        # W&B's grid starts at min, not at a multiple of q
        count = math.floor((high - low) / step + 1e-9) + 1
        return [_number(low + index * step, isinstance(low, int) and _is_whole(step)) for index in range(count)]

    def draw(self, chance: random.Random) -> Any:
        """One value at random."""
        if self.distribution == "constant":
            return self._spec["value"]
        if self.distribution == "categorical":
            return chance.choices(self._spec["values"])[0]
        value, step = _DRAWS[self.distribution](chance, self._spec["min"], self._spec["max"]), self._spec["q"]
        return _number(round(value / step) * step, _is_whole(step)) if self.distribution == "q_uniform" else value

    def _distribution(self, spec: Mapping[str, Any]) -> str:
        given = spec.get("distribution")
        if given is not None and given not in DISTRIBUTIONS:
            known = ", ".join(DISTRIBUTIONS)
            raise self._error(f"distribution {given!r} is not supported here; use `wandb agent`, or one of {known}")
        if "value" in spec and given in (None, "constant"):
            return "constant"
        if "values" in spec and given in (None, "categorical"):
            return "categorical"
        if given in _DRAWS:
            return str(given)
        if given is None and "min" in spec and "max" in spec:
            return "int_uniform" if isinstance(spec["min"], int) and isinstance(spec["max"], int) else "uniform"
        raise self._error(f"{dict(spec)!r} has no values; give value, values, or min and max")

    def _check_numbers(self) -> None:
        for key in ("min", "max", "q"):
            value = self._spec.get(key)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise self._error(f"{key} is {value!r}; {self.distribution} needs a number")
        low, high, step = (self._spec[key] for key in ("min", "max", "q"))
        if low > high or (self.distribution == "log_uniform_values" and low <= 0):
            above = " above 0" if self.distribution == "log_uniform_values" else ""
            raise self._error(f"min is {low} and max is {high}; give min below max{above}")
        if step <= 0:
            raise self._error(f"q is {step}; give a step above 0")
        if self.distribution == "int_uniform":
            self._spec |= {"min": int(low), "max": int(high), "q": 1}

    def _error(self, message: str) -> UserError:
        return UserError(f"sweep: parameter {self.name}: {message}")


def _is_whole(step: float) -> bool:
    return isinstance(step, int) or step == 1.0


def _number(value: float, whole: bool) -> float:
    """The number without the rounding noise of a product of floats."""
    rounded = float(f"{value:.12g}")
    return int(rounded) if whole else rounded
