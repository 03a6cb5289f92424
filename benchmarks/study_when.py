"""The page and the picture of all studies together: what a soup gains, against what as much training alone gains."""

from __future__ import annotations

from statistics import fmean

from matplotlib.figure import Figure
from study_plots import COLOURS, GREY, style, svg
from study_soups import NO_ARM, arms_of
from study_tables import Arm, Rows, sparsities
from study_tests import compared, comparisons

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
- **Where training is saturated and the rate restarts at each pruning, averaging pays.** A dense model that was
  trained to its end, then cycles of pruning and retraining: replicas come apart, and their soup is better than they
  are, in the time of one. Larger soups are under way: cells appear as their runs end.

Each point is a soup at one sparsity: how far one model gains from training as long as all replicas together (to the
right: training is far from saturated), and how far the soup is above one model (up). On the line both are the same;
above it the soup is the better use of the same compute.

![What a soup gains, against what as much training alone gains](when.svg)

Test accuracy, paired by seed, with 95 % intervals by Student's t; p is of a two-sided t-test, with Holm's correction
over the whole table, **bold** where below 0.05. The studies' own pages have the NLL.

"""


def when(every: Rows) -> tuple[str, str]:
    """The page and its picture."""
    pairs, points = list[tuple[Arm, dict[str, Arm]]](), list[tuple[str, float, float]]()
    for study, name in STUDIES.items():
        for label, at in sparsities(every.get(study, [])).items():
            arms = arms_of(at)

            def named(arm: Arm, of: str = f"[{name}]({study}.md), {label.removesuffix(' sparse')}") -> Arm:
                return Arm(f"{of}: {arm.name}", arm.rows)

            pairs += [(named(longer), {"one model": arms.single}) for longer in arms.longer.values()]
            for soup in arms.soups:
                longer = arms.longer.get(soup.rows[0]["candidates.count"], NO_ARM)
                if longer.rows and not soup.name.startswith("greedy"):
                    others = {"one model": arms.single, "one m times as long": longer, **soup.candidates("mean")}
                    pairs.append((named(soup), others))
                    gains = [compared(arm, arms.single, ["accuracy"]) for arm in (longer, soup)]
                    if all(gains):
                        across, up = (fmean(gain["accuracy"].found) for gain in gains)
                        points.append((study, across, up))
    return HEAD + comparisons(pairs, ["accuracy"])[0], _picture(points)


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
