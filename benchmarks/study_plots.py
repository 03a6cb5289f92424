"""Plots of the studies: SVG that is the same for the same numbers, readable on light and on dark pages."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

from sparsekit.report.compare import with_error

GREY = "#808080"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sparsekit",
    "font.size": 9.0,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@contextmanager
def style() -> Iterator[None]:
    """STYLE and matplotlib's defaults, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def bars(found: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    """A row a group with values: its runs as dots, mean and standard error as a bar."""
    found = [(name, values) for name, values in found if values]
    with style():
        figure = Figure(figsize=(7.0, 0.6 + 0.26 * len(found)))
        axes = figure.subplots()
        for place, (_, points) in enumerate(found):
            middle, error = with_error(points)
            axes.plot(points, [place] * len(points), ".", color=GREY, alpha=0.5, markersize=4)
            axes.errorbar(middle, place, xerr=error or 0.0, fmt="o", color=COLOURS[0], capsize=3, markersize=4.5)
        axes.set_yticks(range(len(found)), [name for name, _ in found])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        return svg(figure)


def lines(curves: Mapping[str, Sequence[tuple[float, Sequence[float]]]], across: str, up: str) -> str:
    """Means with standard errors along x, of the values at each x."""
    with style():
        figure = Figure(figsize=(5.5, 2.8))
        axes = figure.subplots()
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            told = [with_error(values) for _, values in points]
            middle, spread = [mean for mean, _ in told], [error or 0.0 for _, error in told]
            x = [place for place, _ in points]
            axes.errorbar(x, middle, yerr=spread, fmt="o-", color=colour, capsize=3, markersize=4.5, label=name)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        if len(curves) > 1:
            axes.legend()
        return svg(figure)


def svg(figure: Figure) -> str:
    """The figure as text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
