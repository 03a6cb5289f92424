"""Several runs compared: grouped by the options that differ, with means and standard errors over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import mean, stdev
from typing import Any

from sparsekit.config.options import FREE
from sparsekit.display.text import is_share, percent, score_number
from sparsekit.report.plots import axis_of, heading, points, scale_of
from sparsekit.report.runs import Run
from sparsekit.report.single import badge, loss_name, shown, text
from sparsekit.report.svg import MARKERS, PALETTE, Chart, Plot, legend

_IGNORED = FREE | {"seed", "device"}
"""Options, and groups of them, that make no group of runs."""
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
    runs: Sequence[Run]

    @property
    def score(self) -> str:
        """The score of its task."""
        return self.runs[0].score

    def values(self, key: str) -> list[float]:
        """A number of the summaries that have it."""
        return [value for run in self.runs if (value := run.summary.get(key)) is not None]


def differing(runs: Sequence[Run]) -> list[str]:
    """Options with two values or more among the runs; an option that a run does not have is no value."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if not {key, key.partition(".")[0]} & _IGNORED
        and len({text(run.config[key]) for run in runs if key in run.config}) > 1
    ]


def groups(runs: Sequence[Run]) -> list[Group]:
    """The finished runs by the options that differ, in the order of the runs."""
    done = [run for run in runs if run.done]
    keys = differing(done)
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in done:
        found.setdefault(tuple(text(run.config[key]) if key in run.config else "–" for key in keys), []).append(run)
    return [Group(dict(zip(keys, values, strict=True)), some) for values, some in found.items()]


def with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, s / √n; None for a single value."""
    return mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def view(runs: Sequence[Run]) -> dict[str, Any]:
    """What the template `compare.html.jinja` shows."""
    found = groups(runs)
    scores = dict.fromkeys(run.score for run in runs)
    several = len(scores) > 1
    head = (
        *("run", "status", "seed", "test score" if several else f"test {runs[0].score}", "sparsity"),
        *("last soup − best, held out", "merges lost", "time", ""),
    )
    return {
        "done": sum(run.done for run in runs),
        "several": any(len(group.runs) > 1 for group in found),
        "means": means(found) if found else None,
        "curves": [curves(some) for score in scores if (some := _of(found, score))],
        "runs": (head, [row(run, several) for run in runs]),
    }


def _of(found: Sequence[Group], score: str) -> list[Group]:
    """The groups that have a score of that name."""
    return [group for group in found if group.score == score and group.values(f"test.{score}")]


def means(found: Sequence[Group]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows of a table with a row for each group."""
    names = metrics([*dict.fromkeys(group.score for group in found)])
    known = [key for key in names if any(group.values(key) for group in found)]
    rows = [
        (
            *(group.options.values() or ["all runs"]),
            str(len(group.runs)),
            shown("sparsity", mean(group.values("sparsity"))),
            *(_cell(key, group.values(key)) for key in known),
        )
        for group in found
    ]
    return (*(found[0].options or ["runs"]), "n", "reached sparsity", *(names[key] for key in known)), rows


def metrics(scores: Sequence[str]) -> dict[str, str]:
    """The columns for runs with these scores: keys of summary.json and their titles."""
    names: dict[str, str] = {}
    several = len(scores) > 1
    for score in scores:
        names |= {
            f"test.{score}": f"test {score}",
            f"candidates.mean_{score}": f"mean candidate{f', {score}' * several}",
        }
    loss = "loss" if several else loss_name(scores[0])
    return names | {"test.loss": loss, "test.ece": "ECE", "test.worst_class_accuracy": "worst class"}


def _cell(key: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle, error = with_error(values)
    if error is None:
        return shown(key, middle)
    if is_share(key):
        return f"{100 * middle:.2f} ± {100 * error:.2f} %"
    return f"{middle:.4f} ± {error:.4f}"


def curves(found: Sequence[Group]) -> Chart:
    """The score against sparsity: a curve each for groups that differ in more than sparsity; they have one score."""
    score, scale = found[0].score, scale_of(found[0].score)
    lines: dict[str, list[tuple[float, float, float | None, int]]] = {}
    for group in found:
        label = ", ".join(f"{key} {value}" for key, value in group.options.items() if key != "sparsity") or "all runs"
        reached = with_error(group.values(f"test.{score}"))
        lines.setdefault(label, []).append((mean(group.values("sparsity")), *reached, len(group.runs)))
    aside = _aside([[100 * point[0] for point in line] for line in lines.values()])
    named = [_shortened(label) for label in lines][:_NAMED]
    columns = 1 if max(map(len, named)) > 30 else 2
    with Plot(3.2 + 0.17 * max(0, -(-len(named) // columns) - 4)) as plot:  # a legend takes none of the panel's height
        (panel,) = plot.panels
        for index, line in enumerate(lines.values()):
            line.sort(key=lambda point: point[0])
            panel.errorbar(
                [100 * x + aside[index] for x, *_ in line],
                [scale * y for _, y, *_ in line],
                [scale * (error or 0.0) for _, _, error, _ in line],
                marker=MARKERS[index % 6],
                color=PALETTE[index % 6],
                linestyle=("-", "--", ":")[index // 6 % 3],
                capsize=3,
                label=named[index] if index < len(named) else None,
            )
        panel.set_xlabel("sparsity of the prunable weights, %")
        panel.set_ylabel(f"test {axis_of(score)}")
        if len(lines) > 1:
            legend(panel, columns)
        svg = plot.svg(f"Test {score} against sparsity")
    digits = 2 if is_share(score) else 4
    data = [
        (
            label,
            percent(x, 2),
            score_number(score, y, 2),
            "–" if error is None else f"{scale * error:.{digits}f}",
            str(n),
        )
        for label, line in lines.items()
        for x, y, error, n in line
    ]
    several = any(len(group.runs) > 1 for group in found)
    note = "Bars are standard errors over seeds." if several else "One seed: no error bars."
    note += f" The legend names the first {_NAMED} of {len(lines)} curves." if len(lines) > _NAMED else ""
    note += " Curves are moved sideways a little, so that none hides another." if any(aside) else ""
    head = ("runs", "sparsity", score, f"standard error{', points' * is_share(score)}", "n")
    return Chart(f"{heading(score)} against sparsity.", svg, head, data, note)


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


def row(run: Run, named: bool = False) -> list[str]:
    """A run's cells in the table of all runs; `named` says which score it has."""
    contests, score = run.contests, run.score
    lost = sum(merge["soup.lost"] for merge in contests)
    return [
        run.name,
        badge(run),
        str(run.config["seed"]),
        f"{shown(f'test.{score}', run.summary.get(f'test.{score}'))}{f' ({score})' * named}",
        shown("sparsity", run.summary.get("sparsity")),
        points(score, contests[-1]["soup"], contests[-1]["best"]) if contests else "–",
        f"{lost} of {len(contests)}" if contests else "–",
        shown("wall_seconds", run.summary.get("wall_seconds")),
        run.note,
    ]
