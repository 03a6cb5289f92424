"""The values of one parameter of a sweep: all of them for a grid, or one at random, by W&B's names and definitions.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from sparsekit.errors import UserError

MAX_CELLS = 10_000
"""The most runs of a sweep, and so the most values of a parameter in a grid."""

Draw = Callable[[random.Random, Mapping[str, Any]], float]


def _between(chance: random.Random, low: float, high: float) -> float:
    return low + (high - low) * chance.random()


def _log_between(chance: random.Random, low: float, high: float) -> float:
    return math.exp(_between(chance, math.log(low), math.log(high)))


_DRAWS: dict[str, Draw] = {
    "uniform": lambda chance, p: _between(chance, p["min"], p["max"]),
    "log_uniform": lambda chance, p: math.exp(_between(chance, p["min"], p["max"])),
    "log_uniform_values": lambda chance, p: _log_between(chance, p["min"], p["max"]),
    "inv_log_uniform": lambda chance, p: math.exp(-_between(chance, p["min"], p["max"])),
    "inv_log_uniform_values": lambda chance, p: 1.0 / _log_between(chance, 1.0 / p["max"], 1.0 / p["min"]),
    "normal": lambda chance, p: chance.gauss(p["mu"], p["sigma"]),
    "log_normal": lambda chance, p: math.exp(chance.gauss(p["mu"], p["sigma"])),
    "beta": lambda chance, p: chance.betavariate(p["a"], p["b"]),
}
_STEPPED = {f"q_{name}" for name in _DRAWS if not name.startswith("inv_")}
_DEFAULTS = {"mu": 0.0, "sigma": 1.0, "q": 1.0, "a": 1.0, "b": 1.0}
DISTRIBUTIONS = ("constant", "categorical", "categorical_w_probabilities", "int_uniform", *_DRAWS, *sorted(_STEPPED))


class Parameter:
    """One parameter as a sweep file describes it.

    Args:
        name: Its dotted name.
        spec: Its mapping in the file, such as `{values: [1, 2]}`.

    Raises:
        UserError: the description makes no sense.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name, self._spec = name, {**_DEFAULTS, **spec}
        self.kind = self._kind(spec)
        if "values" in spec and not (isinstance(spec["values"], list) and spec["values"]):
            raise UserError(f"sweep: parameter {name}: values is {spec['values']!r}; give a list such as [1, 2]")
        shares = spec.get("probabilities")
        if shares is not None and not _are_shares(shares, len(spec.get("values", ()))):
            raise UserError(f"sweep: parameter {name}: probabilities is {shares!r}; give one for each value, above 0")
        if self.kind not in ("constant", "categorical"):
            self._check_numbers()

    @property
    def varies(self) -> bool:
        """Whether it may have several values; a list of one may get more, and runs keep their names."""
        return self.kind != "constant"

    def all(self) -> list[Any]:
        """Every value, for a grid; raises UserError where they are not to be counted."""
        if self.kind == "constant":
            return [self._spec["value"]]
        if self.kind == "categorical":
            return list(self._spec["values"])
        if self.kind in ("int_uniform", "q_uniform"):
            low, high, step = (self._spec[key] for key in ("min", "max", "q"))
            if self.kind == "int_uniform":
                low, high, step = int(low), int(high), 1
            if (high - low) / step >= MAX_CELLS:
                raise UserError(
                    f"sweep: parameter {self.name} has more than {MAX_CELLS:,} values; give fewer, or method: random"
                )
            # from the least value on, as W&B's grid; without the noise of a product of floats
            number = int if isinstance(low, int) and (isinstance(step, int) or step == 1.0) else float
            count = math.floor((high - low) / step + 1e-9) + 1
            return [number(float(f"{low + index * step:.12g}")) for index in range(count)]
        raise UserError(f"sweep: parameter {self.name}: a grid cannot hold {self.kind}; give values, or method: random")

    def draw(self, chance: random.Random) -> Any:
        """One value at random."""
        if self.kind == "constant":
            return self._spec["value"]
        if self.kind == "categorical":
            return chance.choices(self._spec["values"], self._spec.get("probabilities"))[0]
        if self.kind == "int_uniform":
            return chance.randint(int(self._spec["min"]), int(self._spec["max"]))
        value = _DRAWS[self.kind.removeprefix("q_")](chance, self._spec)
        return _step(value, self._spec["q"]) if self.kind.startswith("q_") else value

    def _kind(self, spec: Mapping[str, Any]) -> str:
        named = spec.get("distribution")
        if named is not None and named not in DISTRIBUTIONS:
            raise UserError(
                f"sweep: parameter {self.name}: distribution is {named!r}; choose from {', '.join(DISTRIBUTIONS)}"
            )
        if named in ("constant", None) and "value" in spec:
            return "constant"
        if named in ("categorical", "categorical_w_probabilities", None) and "values" in spec:
            return "categorical"
        if named is None and "min" in spec and "max" in spec:
            whole = all(isinstance(spec[key], int) for key in ("min", "max"))
            return "int_uniform" if whole else "uniform"
        if named is None or named in ("constant", "categorical", "categorical_w_probabilities"):
            raise UserError(f"sweep: parameter {self.name} is {dict(spec)!r}; give value, values, or min and max")
        return str(named)

    def _check_numbers(self) -> None:
        if any(word in self.kind for word in ("normal", "beta")):
            needed = ("a", "b") if "beta" in self.kind else ("mu", "sigma")
        else:
            needed = ("min", "max")
        for key in (*needed, "q"):
            value = self._spec.get(key)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(f"sweep: parameter {self.name}: {key} is {value!r}; {self.kind} needs a number")
        low, high = (self._spec[key] for key in needed)
        if needed == ("min", "max") and (low > high or (self.kind.endswith("_values") and low <= 0)):
            above = " above 0" if self.kind.endswith("_values") else ""
            raise UserError(f"sweep: parameter {self.name}: min {low} and max {high}; give min below max{above}")
        if self._spec["q"] <= 0 or (needed == ("a", "b") and min(low, high) <= 0) or self._spec["sigma"] < 0:
            raise UserError(f"sweep: parameter {self.name}: q, a and b must be above 0, and sigma not below")


def _are_shares(shares: object, count: int) -> bool:
    return (
        isinstance(shares, list)
        and len(shares) == count
        and all(isinstance(share, (int, float)) and share >= 0 for share in shares)
        and sum(shares) > 0
    )


def _step(value: float, step: float) -> float:
    """The nearest multiple, without the noise of a product of floats, and whole where the step is."""
    rounded = float(f"{round(value / step) * step:.12g}")
    return int(rounded) if isinstance(step, int) or step == 1.0 else rounded
