"""The page and the picture of all studies together: what a soup gains, against what as much training alone gains."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure
from study_plots import COLOURS, GREY, style, svg
from study_saturated import SIZES, part
from study_soups import ACCURACY, MEAN, Rows, base, soup_arms
from study_tables import Arm, against, differences, select, table

STUDIES = {
    "digits-gmp": "GMP, digits",
    "digits-bimp": "BIMP, digits",
    "fashion": "GMP, Fashion-MNIST",
    "fashion-bimp": "BIMP, Fashion-MNIST",
    "digits-saturated": "IMP after a long dense phase, digits",
    "digits-saturated-bimp": "BIMP after a long dense phase, digits",
    "fashion-saturated": "IMP after a long dense phase, Fashion-MNIST",
}
MARKERS = "osv^DPX"
HEAD = """# When do soups pay?

Two answers, each from the cells below:

- **Where training is short, train longer.** While a model still gains from more epochs, one model that trains as long
  as all replicas together is better than their soup, by far. Soups are then for replicas that train side by side, where
  time counts and not compute.
- **Where training is saturated and the rate restarts at each pruning, averaging can pay.** A dense model that was
  trained to its end, then cycles of pruning and retraining: replicas come apart, and their soup is better than they
  are, in the time of one. This part is under way: cells appear as their runs end.

Each point is a soup at one sparsity: how far one model gains from training as long as all replicas together (to the
right: training is far from saturated), and how far the soup is above one model (up). On the line both are the same;
above it the soup is the better use of the same compute. Points of test accuracy, paired by seed.

![What a soup gains, against what as much training alone gains](when.svg)
"""


class Cell(NamedTuple):
    """A soup, one model of the same length, and one of the same compute."""

    study: str
    sparsity: float
    soup: Arm
    single: Arm
    longer: Arm


def cells(every: Rows) -> Iterator[Cell]:
    """The uniform soups of all studies that have both baselines."""
    for study in STUDIES:
        for sparsity in sorted({row["sparsity"] for row in every.get(study, [])}):
            at = select(every[study], sparsity=sparsity)
            single = Arm("one model", select(at, part="1-single"))
            found = [
                (Arm(f"soup of {m}, forked at every pruning", part(at, f"soup{m}")), part(at, f"retrained{m}"))
                for m in SIZES
            ] + [
                (arm, select(at, part="3-longer", epochs=arm.rows[0]["candidates.count"] * base(at)))
                for arm in soup_arms(at)
                if arm.name.startswith("uniform soup")
            ]
            for soup, longer in found:
                if soup.rows and longer:
                    yield Cell(study, sparsity, soup, single, Arm("longer", longer))


def when(every: Rows) -> tuple[str, str]:
    """The page and its picture."""
    body, points = [], []
    for cell in cells(every):
        ours, alone, longer = (arm.values(ACCURACY) for arm in (cell.soup, cell.single, cell.longer))
        across, up = differences(longer, alone), differences(ours, alone)
        if not across or not up:
            continue
        points.append((cell.study, 100 * fmean(across), 100 * fmean(up)))
        body.append(
            [
                f"[{STUDIES[cell.study]}]({cell.study}.md)",
                f"{100 * cell.sparsity:g} %",
                cell.soup.name.removeprefix("uniform "),
                against(longer, alone),
                against(ours, alone),
                against(ours, longer),
                against(ours, cell.soup.values(MEAN)),
            ]
        )
    columns = (
        "study",
        "sparsity",
        "soup",
        "longer − one model",
        "soup − one model",
        "soup − longer",
        "soup − candidates",
    )
    note = "\nMean ± standard error, **bold** where p < 0.05 (paired t-test, not corrected for their number).\n\n"
    return HEAD + note + table(columns, body), _picture(points)


def _picture(points: list[tuple[str, float, float]]) -> str:
    with style():
        figure = Figure(figsize=(6.0, 4.2))
        axes = figure.subplots()
        colours = (*COLOURS, "#e69f00", "#56b4e9", GREY)
        for (study, name), marker, colour in zip(STUDIES.items(), MARKERS, colours, strict=True):
            own = [(x, y) for each, x, y in points if each == study]
            if own:
                axes.plot(*zip(*own, strict=True), marker, color=colour, label=name, markersize=5, linestyle="none")
        ends = [value for _, *pair in points for value in pair]
        low, high = min([0.0, *ends]) - 0.1, max([0.5, *ends]) + 0.1
        axes.plot([low, high], [low, high], "--", color=GREY, linewidth=0.8)
        axes.axhline(0.0, color=GREY, linewidth=0.6, alpha=0.5)
        axes.set_xlabel("one model, trained as long as all replicas together, − one model; points")
        axes.set_ylabel("soup − one model; points")
        axes.legend()
        return svg(figure)
