"""The README's table of the two regimes, from the rows. It stands between two marks, and nothing there is by hand."""

from __future__ import annotations

import re

from study_soups import NO_ARM, arms_of
from study_tables import SPACE, Row, Rows, mean, sparsities, table

OPENED, CLOSED = "<!-- results -->\n", "<!-- /results -->"
LABEL = "98 % sparse"
REGIMES = {
    "digits-gmp": ("short", "`gmp`, 30 epochs", "uniform soup of 3, forked from the start"),
    "digits-saturated": ("saturated", "`imp`, 150 epochs dense, then 3 × 30", "soup of 3"),
}
"""By study: the regime, what is trained, and the arm that is the soup."""


def results(every: Rows) -> str:
    """The table; "–" stands for what has no runs yet."""
    rows = []
    for study, (regime, what, soup) in REGIMES.items():
        arms = arms_of(sparsities(every.get(study, [])).get(LABEL, list[Row]()))
        averaged = next((arm for arm in arms.soups if arm.name == soup), NO_ARM)
        cells = []
        for arm in (arms.single, averaged, arms.longer.get(3, NO_ARM)):
            reached = arm.reached("accuracy")
            cells.append((mean(reached) + (f" ({len(reached)})" if reached else "")).replace(" ", SPACE))
        rows.append([f"[{regime}](docs/results/{study}.md): {what}", *cells])
    return (
        "\n"
        + table(["98 % of the weights are zero", "one model", "soup of 3", "one model, 3 times as long"], rows)
        + "\n"
    )


def filled(readme: str, every: Rows) -> str:
    """The README with its table made from the rows.

    Raises:
        ValueError: a README without exactly one pair of marks.
    """
    text, count = re.subn(f"(?<={OPENED}).*?(?={CLOSED})", lambda _: results(every), readme, flags=re.S)
    if count != 1:
        raise ValueError(f"README.md has {count} places between {OPENED.strip()} and {CLOSED}; give it one")
    return text
