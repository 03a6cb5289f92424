"""The page on whole channels: accuracy against the time of the network without them, for four widths."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from study_page import Page
from study_tables import Arm, Row, Rows, select

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


def arm(rows: Sequence[Row], part: str, width: float) -> Arm:
    """The runs of one kind and width."""
    sparsity, channels = WIDTHS[width]
    own = select(rows, part=part)
    if part == "3-narrow":
        return Arm(ARMS[part], [row for row in own if row["model.kwargs"]["channels"] == channels])
    return Arm(ARMS[part], select(own, sparsity=sparsity))


def channels(name: str, every: Rows) -> Page:
    """The study's page."""
    where = "Fashion-MNIST" if name.startswith("fashion") else "digits"
    page = Page(name, f"Whole channels on {where}", HEAD)
    for width in WIDTHS:
        arms = {part: arm(every[name], part, width) for part in ARMS}
        soup = arms["2-soup"]
        others = {each.name: each for each in arms.values() if each is not soup}
        if any(each.rows for each in arms.values()):
            page.section(f"Width {width:g}", list(arms.values()), [(soup, others)], facts={"ms an image": milliseconds})
    return page


def milliseconds(arm: Arm) -> str:
    """The median time of one image without the removed channels."""
    seconds = [row.get("latency.slim_seconds", row.get("latency.seconds")) for row in arm.rows]
    times = [1e3 * value for value in seconds if value is not None]
    return f"{median(times):.2f}" if times else "–"
