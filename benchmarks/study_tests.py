"""Comparisons over seeds as a table tells them: intervals, Holm's correction, and what so many seeds can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy import stats
from study_tables import MEASURES, SPACE, Arm, table

POWER = 0.8
NOISE = 1e-9
"""Differences that are no further apart are the same, but for rounding."""


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
        return float(stats.ttest_1samp(self.found, 0.0).pvalue)

    @property
    def smallest(self) -> float:
        """What so many seeds with this spread tell apart, p < 0.05, in four of five studies."""
        free = len(self.found) - 1
        return float(stats.t.ppf(0.975, free) + stats.t.ppf(POWER, free)) * self.error

    def text(self) -> str:
        """The mean with its 95 % interval by Student's t."""
        middle, half = fmean(self.found), float(stats.t.ppf(0.975, len(self.found) - 1)) * self.error
        mean, low, high = (
            f"{value:+.{self.digits}f}".replace("-", "−") for value in (middle, middle - half, middle + half)
        )
        return f"{mean} [{low}, {high}]"


Pairs = Sequence[tuple[Arm, Mapping[str, Arm]]]
"""Arms, each with those it is compared with, by what these are called; one without rows is left out."""


def compared(ours: Arm, theirs: Arm, measures: Iterable[str]) -> dict[str, Difference]:
    """Compare two arms by each measure, as far as three seeds or more have both, and do not all differ by the same."""
    pairs = {}
    for measure in measures:
        own, other = ours.reached(measure), theirs.reached(measure)
        found = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
        if len(found) >= 3 and max(found) - min(found) > NOISE:
            pairs[measure] = Difference(found, MEASURES[measure].better, MEASURES[measure].digits)
    return pairs


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Stat. 6, 1979): the i-th smallest times n - i + 1, and never falling."""
    adjusted, worst = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = worst
    return adjusted


Place = tuple[str, str, str]
"""A measure, an arm, and what it is compared with."""


def comparisons(
    pairs: Pairs, measures: Sequence[str] = ("accuracy", "NLL"), counted: str = "seeds"
) -> tuple[str, list[str]]:
    """A table of comparisons, corrected over all its tests, with its power; and what it says, a line an arm."""
    asked = {(ours.name, what): (ours, other) for ours, others in pairs for what, other in others.items() if other.rows}
    found = {
        (measure, *names): each for names, arms in asked.items() for measure, each in compared(*arms, measures).items()
    }
    if not found:
        return "", []
    adjusted = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    arms, columns = (list(dict.fromkeys(names)) for names in list(zip(*found, strict=True))[1:])
    body = []
    for measure in measures:
        for arm in arms:
            places = {column: (measure, arm, column) for column in columns if (arm, column) in asked}
            if seeds := sorted({len(found[place].found) for place in places.values() if place in found}):
                cells = {
                    column: _cell(found[place], adjusted[place]) if place in found else "–"
                    for column, place in places.items()
                }
                unit = f"{measure}, {MEASURES[measure].unit}".removesuffix(", ")
                paired = " to ".join(dict.fromkeys((str(seeds[0]), str(seeds[-1]))))
                body.append([unit, arm, paired, *(cells.get(column, "") for column in columns)])
    text = table(["measure", "what", counted, *(f"− {column}" for column in columns)], body)
    said = [_said(arm, {place: each for place, each in found.items() if place[1] == arm}, adjusted) for arm in arms]
    return f"{text}\n{_power(found)}\n", said


def _cell(each: Difference, p: float) -> str:
    text = f"{each.text()}, p{SPACE}" + (f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}")
    return f"**{text}**" if p < 0.05 else text


def _said(arm: str, found: Mapping[Place, Difference], adjusted: Mapping[Place, float]) -> str:
    """What an arm's comparisons tell; of one that tells nothing, the first measure."""
    said: dict[str, dict[str, list[str]]] = {"better than": {}, "worse than": {}, "not told apart from": {}}
    for column in dict.fromkeys(column for *_, column in found):
        own = [place for place in found if place[2] == column]
        clear = [place for place in own if adjusted[place] < 0.05]
        for place in clear or own[:1]:
            each, verdict = found[place], "not told apart from"
            if clear:
                verdict = "better than" if each.better * fmean(each.found) > 0 else "worse than"
            text = f"{place[0]} {each.text()}".removeprefix("accuracy ")
            said[verdict].setdefault(column, []).append(text)
    parts = [
        f"{verdict} " + ", ".join(f"{column} ({', '.join(texts)})" for column, texts in of_column.items())
        for verdict, of_column in said.items()
        if of_column
    ]
    return f"{arm}: {'; '.join(parts)}."


def _power(found: Mapping[Place, Difference]) -> str:
    """What so many seeds could have told: the least and the most of a table's comparisons."""
    parts = []
    for measure in dict.fromkeys(measure for measure, *_ in found):
        smallest = [each.smallest for place, each in found.items() if place[0] == measure]
        ends = (f"{value:.{MEASURES[measure].digits}f}" for value in (min(smallest), max(smallest)))
        parts.append(f"{measure} {' to '.join(dict.fromkeys(ends))} {MEASURES[measure].unit}".rstrip())
    alone = "With its spread, one of them, uncorrected, would tell this difference in four of five such studies"
    return f"{len(found)} tests. {alone}: {'; '.join(parts)}."
