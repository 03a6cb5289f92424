"""Several runs beside one another: grouped by the options that differ, with means and standard errors over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import mean, stdev
from typing import Any

from sparsekit.config.options import FREE
from sparsekit.display.text import duration, percent
from sparsekit.report import plots
from sparsekit.report.html import Html, Table, element, figure, join, table
from sparsekit.report.runs import Run
from sparsekit.report.single import badge
from sparsekit.report.svg import MARKERS, PALETTE, Plot, legend

METRICS = (
    ("test.accuracy", "test accuracy"),
    ("candidates.mean_accuracy", "mean candidate"),
    ("test.loss", "NLL"),
    ("test.ece", "ECE"),
    ("test.worst_class_accuracy", "worst class"),
)
_PLACES = FREE | {"seed", "device"}
_NAMED = 12
"""How many curves a legend has room for."""


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in their seeds alone.

    Attributes:
        options: The options in which it differs from other groups.
        runs: Its runs.
    """

    options: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The options, for people."""
        return ", ".join(f"{key} {value}" for key, value in self.options.items()) or "all runs"

    def values(self, key: str) -> list[float]:
        """A number of the summaries that have it."""
        return [value for run in self.runs if (value := run.number(key)) is not None]


def differing(runs: Sequence[Run]) -> list[str]:
    """Options that have two values or more among the runs; one that a run's version does not know is no value."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if key not in _PLACES
        and key.partition(".")[0] not in _PLACES
        and len({text(run.config[key]) for run in runs if key in run.config}) > 1
    ]


def groups(runs: Sequence[Run]) -> list[Group]:
    """The finished runs by the options that differ, in the order of the runs."""
    done = [run for run in runs if run.done]
    keys = differing(done)
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in done:
        found.setdefault(tuple(text(run.config[key]) if key in run.config else "–" for key in keys), []).append(run)
    return [Group(dict(zip(keys, values, strict=True)), tuple(some)) for values, some in found.items()]


def with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, s / √n; None for a single value."""
    return mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def section(runs: Sequence[Run]) -> Html:
    """The comparison, and a line a run."""
    found = groups(runs)
    parts: list[Html | None] = []
    if found:
        parts += [element("h2", "Comparison"), _means(found), _curves(found)]
    else:
        parts.append(element("p", "None of these runs is done; there is nothing to compare yet."))
    parts += [element("h2", "Runs"), _list(runs)]
    return join(part for part in parts if part)


def text(value: Any) -> str:
    """An option's value, the same for equal values."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _means(found: Sequence[Group]) -> Html:
    keys = list(found[0].options)
    shown = [(key, title) for key, title in METRICS if any(group.values(key) for group in found)]
    rows = []
    for group in found:
        cells = [_cell(key, group.values(key)) for key, _ in shown]
        rows.append(
            (
                *(group.options.values() or ["all runs"]),
                str(len(group.runs)),
                _cell("sparsity", group.values("sparsity")),
                *cells,
            )
        )
    head = (*(keys or ["runs"]), "n", "reached sparsity", *(title for _, title in shown))
    several = any(len(group.runs) > 1 for group in found)
    over = "Mean ± standard error over the runs of a group, which differ in their seeds alone"
    note = (
        f"{over if several else 'One seed: no error bars'}; groups by the options that differ. "
        "Unfinished, stopped and failed runs are left out."
    )
    return join([element("p", note, class_="dim"), table(Table(head, rows))])


def _cell(key: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle, error = with_error(values)
    if key.endswith(("accuracy", "sparsity")):
        return percent(middle, 2) if error is None or key == "sparsity" else f"{100 * middle:.2f} ± {100 * error:.2f} %"
    return f"{middle:.4f}" if error is None else f"{middle:.4f} ± {error:.4f}"


def _curves(found: Sequence[Group]) -> Html | None:
    """Accuracy against sparsity: a curve each for groups that differ in more than sparsity."""
    curves: dict[str, list[tuple[float, float, float | None, int]]] = {}
    for group in found:
        accuracy, sparsity = group.values("test.accuracy"), group.values("sparsity")
        if accuracy and sparsity:
            label = Group({k: v for k, v in group.options.items() if k != "sparsity"}, ()).label
            curves.setdefault(label, []).append((mean(sparsity), *with_error(accuracy), len(accuracy)))
    if not curves:
        return None
    aside = _aside([[100 * row[0] for row in rows] for rows in curves.values()])
    named = [_shortened(label) for label in curves][:_NAMED]
    columns = 1 if max(map(len, named)) > 30 else 2
    with Plot(3.2 + 0.17 * max(0, -(-len(named) // columns) - 4)) as plot:  # a legend takes none of the panel's height
        (panel,) = plot.panels
        for index, rows in enumerate(curves.values()):
            rows.sort()
            x, y = [100 * row[0] + aside[index] for row in rows], [100 * row[1] for row in rows]
            errors = [100 * (row[2] or 0.0) for row in rows]
            style = ("-", "--", ":")[index // 6 % 3]
            panel.errorbar(
                x,
                y,
                errors,
                marker=MARKERS[index % 6],
                color=PALETTE[index % 6],
                linestyle=style,
                capsize=3,
                label=named[index] if index < len(named) else None,
            )
        panel.set_xlabel("sparsity of the prunable weights, %")
        panel.set_ylabel("test accuracy, %")
        if len(curves) > 1:
            legend(panel, columns)
        svg = plot.svg("Test accuracy against sparsity")
    data = [
        (label, percent(s, 2), percent(a, 2), "–" if e is None else f"{100 * e:.2f}", str(n))
        for label, rows in curves.items()
        for s, a, e, n in rows
    ]
    more = f" The legend names the first {_NAMED} of {len(curves)} curves." if len(curves) > _NAMED else ""
    head = ("runs", "sparsity", "accuracy", "standard error, points", "n")
    several = any(row[3] > 1 for rows in curves.values() for row in rows)
    more += " Curves are moved sideways a little, so that none hides another." if any(aside) else ""
    note = f"{'Bars are standard errors over seeds.' if several else 'One seed: no error bars.'}{more}"
    return element("div", figure("Accuracy against sparsity.", svg, Table(head, data), note), class_="figures")


def _aside(curves: Sequence[Sequence[float]]) -> list[float]:
    """How far to move each curve along x, so that marks at one sparsity do not hide one another."""
    places = sorted({round(x, 2) for curve in curves for x in curve})
    gap = min((right - left for left, right in pairwise(places)), default=1.0)
    if len(places) == sum(map(len, curves)):
        return [0.0] * len(curves)
    step = gap * min(0.03, 0.4 / len(curves))
    return [step * (index - (len(curves) - 1) / 2) for index in range(len(curves))]


def _shortened(label: str, most: int = 60) -> str:
    """A label that leaves room for the plot: its beginning and its end, where paths and options differ."""
    return label if len(label) <= most else f"{label[: most // 3]}…{label[-(most - most // 3 - 1) :]}"


def _list(runs: Sequence[Run]) -> Html:
    rows = []
    for run in runs:
        last = [row for row in plots.merges(run) if len(row["candidates"]) > 1]
        wall, shares = run.number("wall_seconds"), [run.number(key) for key in ("test.accuracy", "sparsity")]
        rows.append(
            (
                run.name,
                badge(run),
                str(run.config.get("seed", "–")),
                *("–" if value is None else percent(value, 2) for value in shares),
                plots.points(last[-1]["soup"] - last[-1]["best"]) if last else "–",
                f"{sum(row['lost'] for row in last)} of {len(last)}" if last else "–",
                "–" if wall is None else duration(wall),
                "; ".join(run.problems),
            )
        )
    head = (
        "run",
        "status",
        "seed",
        "test accuracy",
        "sparsity",
        "last soup − best, held out",
        "merges lost",
        "time",
        "",
    )
    return table(Table(head, rows), class_="runs")
