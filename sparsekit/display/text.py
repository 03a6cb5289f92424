"""Numbers as people read them: percentages and durations."""

from __future__ import annotations


def percent(share: float, digits: int = 1) -> str:
    """A share of 0 to 1 for people. What is not all never reads 100 %."""
    while share < 1.0 <= round(share, digits + 2) and digits < 6:
        digits += 1
    return f"{100.0 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds, with two units where that helps."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
