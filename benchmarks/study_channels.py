"""The page on whole channels: accuracy against the time of the network without them, for four widths."""

from __future__ import annotations

from statistics import median

from study_soups import Page, Rows
from study_tables import Arm, Row, against, mean, select, table

WIDTHS = {
    0.75: (0.4375, [12, 24, 45, 78]),
    0.5: (0.75, [8, 16, 30, 52]),
    0.35: (0.8775, [6, 11, 21, 36]),
    0.25: (0.9375, [4, 8, 15, 26]),
}
"""For each width the sparsity that leaves as many weights, and the channels of a network that is so narrow."""
ARMS = {
    "1-single": "pruned while it trains",
    "2-soup": "its soup of three",
    "3-narrow": "that narrow from the start",
    "4-once": "trained, then pruned once",
}
HEAD = """Each network has about as many weights left as one of that width. Seconds are of one image without the removed
channels, measured at the end of each run, beside others: medians over seeds, and ratios better than they are exact.
"""


def arm(rows: list[Row], part: str, width: float) -> Arm:
    """The runs of one kind and width."""
    sparsity, channels = WIDTHS[width]
    own = select(rows, part=part)
    if part == "3-narrow":
        return Arm(ARMS[part], [row for row in own if row["model.kwargs"]["channels"] == channels])
    return Arm(ARMS[part], select(own, sparsity=sparsity))


def channels(name: str, every: Rows) -> Page:
    """The study's page."""
    rows, lines, found = list(every[name]), [], []
    for width in WIDTHS:
        arms = {part: arm(rows, part, width) for part in ARMS}
        soup = arms["2-soup"].values("test.accuracy")
        for part, each in arms.items():
            if not each.rows:
                continue
            values = each.values("test.accuracy")
            seconds = [row.get("latency.slim_seconds", row.get("latency.seconds")) for row in each.rows]
            times = [1e3 * value for value in seconds if value is not None]
            lines.append([
                f"{width:g}", each.name, len(values), mean(list(values.values())),
                f"{median(times):.2f}" if times else "–", "" if part == "2-soup" else against(soup, values),
            ])  # fmt: skip
        if arms["2-soup"].rows and arms["3-narrow"].rows:
            gain = against(soup, arms["3-narrow"].values("test.accuracy"))
            found.append(f"Width {width:g}: the soup is {gain} points above a network that narrow from the start.")
    where = "Fashion-MNIST" if name.startswith("fashion") else "digits"
    text = f"# Whole channels on {where}\n\n{HEAD}\n" + table(
        ["width", "network", "runs", "test accuracy, %", "ms an image", "the soup, less it"], lines
    )
    return Page(text, {}, found)
