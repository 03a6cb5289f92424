"""Percentages, scores, durations and lists as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any


def percent(share: float, digits: int = 1) -> str:
    """A fraction from 0 to 1 as a percentage; a fraction below 1 never reads 100 %, up to six digits."""
    while share < 1.0 <= round(share, digits + 2) and digits < 6:
        digits += 1
    return f"{100.0 * share:.{digits}f} %"


def is_share(name: str) -> bool:
    """Whether a score is a share that people read in per cent, by its name: an accuracy."""
    return name.endswith("accuracy")


def score_number(name: str, value: float | None, digits: int = 1) -> str:
    """A score's value where its name stands beside it: an accuracy as a percentage, any other to four places."""
    if value is None or not isfinite(value):
        return "not finite"
    return percent(value, digits) if is_share(name) else f"{value:.4f}"


def score_text(name: str, value: float, digits: int = 1) -> str:
    """A score by its name: an accuracy as a percentage, any other with its name, to four places."""
    number = score_number(name, value, digits)
    return number if is_share(name) else f"{name} {number}"


def gap_text(name: str, difference: float, digits: int = 2) -> str:
    """A difference of two scores: of accuracies in points, of any other to four places."""
    return f"{100 * difference:.{digits}f} points" if is_share(name) else f"{difference:.4f}"


def signed_text(name: str, difference: float) -> str:
    """A difference with its sign: of accuracies in points, of any other measure to four places."""
    return f"{100 * difference:+.2f}" if is_share(name) else f"{difference:+.4f}"


def gain_text(name: str, summary: Mapping[str, Any]) -> str:
    """The 95 % interval of what a soup brought over its candidates by a measure; empty where it is not known."""
    ends = summary.get(f"gain.{name}.low"), summary.get(f"gain.{name}.high")
    low, high = (None if end is None else signed_text(name, end) for end in ends)
    return "" if low is None or high is None else f"95 % interval {low} to {high}"


def duration(seconds: float) -> str:
    """Seconds as text, with up to two units, such as `3 min 07 s`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in one line: the first ones, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
