"""Means, standard errors and paired tests over seeds, as cells of a Markdown table. No files, no plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from sparsekit.report.compare import with_error

Row = dict[str, Any]
SPACE = "\N{NO-BREAK SPACE}"


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


def mean(values: Sequence[float], scale: float = 100.0, digits: int = 2) -> str:
    """Mean ± standard error, in points by default."""
    if not values:
        return "–"
    middle, error = with_error([scale * value for value in values])
    return f"{middle:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours less theirs, at the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def p_value(found: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test on differences; None where there are too few, or all are the same."""
    if len(found) < 3 or len(set(found)) == 1:
        return None
    return float(stats.ttest_1samp(found, 0.0).pvalue)


def against(ours: dict[int, float], theirs: dict[int, float], scale: float = 100.0, digits: int = 2) -> str:
    """Mean difference ± its standard error, with p; bold where p < 0.05."""
    found = differences(ours, theirs)
    if not found:
        return "–"
    p = p_value(found)
    middle, error = with_error([scale * value for value in found])
    spread = "" if error is None else f"{SPACE}±{SPACE}{error:.{digits}f}"
    text = signed(middle, digits) + spread + (f" (p{SPACE}{told(p)})" if p is not None else "")
    return f"**{text}**" if p is not None and p < 0.05 else text


def signed(value: float, digits: int = 2) -> str:
    """With a plus or a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def told(p: float) -> str:
    """A p-value, short."""
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows with these values; dots of a key are written as two underscores."""
    pairs = [(key.replace("__", "."), value) for key, value in wanted.items()]
    return [row for row in rows if all(row.get(key) == value for key, value in pairs)]
