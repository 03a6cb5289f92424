"""Charts: matplotlib figures as inline SVG in the page's own colours, light or dark. Nothing here knows of runs."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#112233", "#aabbcc"
"""Placeholders for the page's text and line colours."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which are safe for the colour-blind; placeholders for the page's `--c1` to `--c6`."""
_COLOURS = {INK: "currentColor", GRID: "var(--line)"} | {c: f"var(--c{i})" for i, c in enumerate(PALETTE, 1)}
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 4.9

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Chart:
    """A plot, and its data as a table.

    Attributes:
        title: What it shows.
        svg: The plot, an SVG element.
        head: The table's head.
        rows: The table's rows, as text.
        note: How to read the plot.
    """

    title: str
    svg: Markup
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Plot:
    """A figure of panels above one another; a context manager that sets matplotlib's style while it is drawn.

    Args:
        heights: Of the panels, in inches.
    """

    def __init__(self, *heights: float) -> None:
        self._heights = heights
        self._context = matplotlib.rc_context(_STYLE)

    def __enter__(self) -> Plot:
        self._context.__enter__()
        self.figure = Figure(figsize=(WIDTH, sum(self._heights)))
        rows = len(self._heights)
        grid = self.figure.subplots(rows, 1, sharex=rows > 1, squeeze=False, height_ratios=list(self._heights))
        self.panels: list[Axes] = list(grid[:, 0])
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def svg(self, label: str) -> Markup:
        """The figure as an SVG element, with a label for screen readers."""
        file = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # text stays text: browsers have fonts that matplotlib lacks
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return Markup(_inline(file.getvalue(), label))


def draw(panel: Axes, points: Sequence[tuple[float, float]], style: str, **options: Any) -> None:
    """Plot points (x, y) in matplotlib's format `style`, and nothing where there are none, not even a legend."""
    if points:
        panel.plot(*zip(*points, strict=True), style, **options)


def legend(panel: Axes, columns: int = 3) -> None:
    """A legend above the panel, where it covers nothing."""
    panel.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


_counter = iter(range(1, 1 << 62))


def _inline(text: str, label: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box
    head = f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="{box[1]}">'
    text = text[text.index(">") + 1 :]
    text = re.sub(r" font-family: [^;]*;", "", text)  # the page's own
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    page = next(_counter)  # ids must be unique on a page with many plots
    for name in used:
        text = re.sub(rf'(id="|url\(#|href="#){re.escape(name)}(?=[")])', rf"\g<1>f{page}{name}", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"<[^>]+>", lambda tag: _dressed(tag[0]), text)  # tags only: a plot's text stays as it is
    return head + re.sub(r"\n\s*", "\n", text).strip()


def _dressed(tag: str) -> str:
    """A tag with rounded coordinates, and the page's colours in place of the placeholders."""
    tag = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag)
    for colour, name in _COLOURS.items():
        tag = tag.replace(colour, name)
    return tag
