"""Arms of a study, and what they reached, as cells of a Markdown table. No files, no plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsekit.report.compare import with_error

Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""All studies' rows, by study."""
SPACE = "\N{NO-BREAK SPACE}"


class Measure(NamedTuple):
    """How a measure is shown.

    Attributes:
        key: Its key in a row.
        unit: Of differences.
        scale: From a row's unit to the one shown.
        better: Whether more is better, 1, or less, -1.
        digits: Decimals.
    """

    key: str
    unit: str
    scale: float
    better: int
    digits: int


MEASURES = {
    "accuracy": Measure("test.accuracy", "points", 100.0, 1, 2),
    "NLL": Measure("test.loss", "nats", 1.0, -1, 4),
    "ECE": Measure("test.ece", "", 1.0, -1, 4),
    "Brier score": Measure("test.brier", "", 1.0, -1, 4),
    "worst class": Measure("test.worst_class_accuracy", "points", 100.0, 1, 2),
    "corrupted": Measure("test.corrupted_accuracy", "points", 100.0, 1, 2),
}


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        name: What they are called.
        rows: One a seed.
    """

    name: str
    rows: Sequence[Row]

    def values(self, key: str) -> dict[int, float]:
        """A value by seed, of the runs that have it."""
        return {row["seed"]: float(row[key]) for row in self.rows if row.get(key) is not None}

    def reached(self, measure: str) -> dict[int, float]:
        """A measure by seed, in the unit that is shown."""
        key, _, scale, *_ = MEASURES[measure]
        return {seed: scale * value for seed, value in self.values(key).items()}

    def candidates(self, *kinds: str) -> dict[str, Arm]:
        """The candidates of a soup, as far as its runs say what they reached: their mean, their ensemble, the best."""
        names = {"mean": "its mean candidate", "ensemble": "its ensemble", "best": "its best candidate"}
        return {
            names[kind]: Arm(
                names[kind],
                [
                    {"seed": row["seed"]}
                    | {f"test.{key}": row.get(f"candidates.{kind}_{key}") for key in ("accuracy", "loss")}
                    for row in self.rows
                    if row.get("candidates.count") != 1
                ],
            )
            for kind in kinds or names
        }


def mean(values: Mapping[int, float], digits: int = 2) -> str:
    """Mean ± standard error over the seeds."""
    if not values:
        return "–"
    middle, error = with_error(list(values.values()))
    return f"{middle:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows with these values; dots of a key are written as two underscores."""
    pairs = [(key.replace("__", "."), value) for key, value in wanted.items()]
    return [row for row in rows if all(row.get(key) == value for key, value in pairs)]


def part(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows of the sweep file `N-name`."""
    return [row for row in rows if row.get("part", "").partition("-")[2] == name]


def sparsities(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their sparsity, as a page's sections are called."""
    levels = sorted({row["sparsity"] for row in rows})
    return {f"{100 * level:g} % sparse": select(rows, sparsity=level) for level in levels}
