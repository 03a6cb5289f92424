"""Comparisons over seeds as a table tells them: intervals, Holm's correction, and what so many seeds can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median_low, stdev

from scipy import stats
from study_tables import SPACE, Arm, differences, p_value, signed, table, told

MEASURES = {"accuracy": ("points", 100.0, 1, 2), "NLL": ("nats", 1.0, -1, 4)}
"""Unit, factor, whether more or less is better, decimals."""
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """One arm less another by one measure.

    Attributes:
        found: By seed, in the measure's unit; three or more that are not all the same.
        better: Whether more is better, 1, or less, -1.
        digits: Decimals to show.
    """

    found: Sequence[float]
    better: int
    digits: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return stdev(self.found) / sqrt(len(self.found))

    @property
    def p(self) -> float:
        """Two-sided p of the paired t-test."""
        return p_value(self.found) or 0.0

    @property
    def smallest(self) -> float:
        """What so many seeds with this spread tell apart, p < 0.05, in four of five studies."""
        free = len(self.found) - 1
        return float(stats.t.ppf(0.975, free) + stats.t.ppf(POWER, free)) * self.error

    def text(self) -> str:
        """The mean with its 95 % interval by Student's t."""
        middle, half = fmean(self.found), float(stats.t.ppf(0.975, len(self.found) - 1)) * self.error
        mean, low, high = (signed(value, self.digits) for value in (middle, middle - half, middle + half))
        return f"{mean} [{low}, {high}]"


Comparisons = Mapping[str, Mapping[str, Difference]]
"""By what is compared, then by measure."""


def compared(ours: Arm, theirs: Arm, keys: Mapping[str, tuple[str, str]]) -> dict[str, Difference]:
    """Compare two arms by each measure, whose keys are given for both; as far as three seeds or more have both."""
    pairs = {}
    for measure, (own, other) in keys.items():
        _, scale, better, digits = MEASURES[measure]
        found = [scale * value for value in differences(ours.values(own), theirs.values(other))]
        if p_value(found) is not None:
            pairs[measure] = Difference(found, better, digits)
    return pairs


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Stat. 6, 1979): the i-th smallest times n - i + 1, and never falling."""
    adjusted, worst = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = worst
    return adjusted


def comparisons(found: Comparisons) -> tuple[str, list[str]]:
    """A table of comparisons, corrected over all its tests, with its power; and what it says, a line each."""
    places = [(what, measure) for what, pairs in found.items() for measure in pairs]
    adjusted = dict(zip(places, holm([found[what][measure].p for what, measure in places]), strict=True))
    body, said = [], []
    for what, pairs in found.items():
        cells, says = [], []
        for measure in MEASURES:
            if measure not in pairs:
                cells.append("–")
                continue
            each, p = pairs[measure], adjusted[what, measure]
            text = f"{each.text()}, p{SPACE}{told(p)}"
            cells.append(f"**{text}**" if p < 0.05 else text)
            if p < 0.05:
                better = "better" if each.better * fmean(each.found) > 0 else "worse"
                says.append(f"{better} in {measure} ({signed(fmean(each.found), each.digits)})")
        body.append([what, max(len(each.found) for each in pairs.values()), *cells])
        said.append(f"{what}: {' and '.join(says) or 'not told apart'}.")
    text = table(["difference", "seeds", *(f"{name}, {unit}" for name, (unit, *_) in MEASURES.items())], body)
    return f"{text}\n{_power(found)}\n", said


def _power(found: Comparisons) -> str:
    """What so many seeds could have told, before correction: the median over a table's comparisons."""
    parts = []
    for measure, (unit, *_, digits) in MEASURES.items():
        if smallest := [pairs[measure].smallest for pairs in found.values() if measure in pairs]:
            parts.append(f"{median_low(smallest):.{digits}f} {unit}")
    return f"With this spread, four of five such studies would tell a difference of {' or '.join(parts)}."
