"""The page of a study of soups: merges, replicas and forks beside one model of as much compute, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from study_plots import bars
from study_tables import SPACE, Arm, Row, against, differences, mean, p_value, select, signed, table, told

Rows = Mapping[str, Sequence[Row]]

ACCURACY, MEAN = "test.accuracy", "candidates.mean_accuracy"
CANDIDATES = (MEAN, "candidates.ensemble_accuracy", "candidates.best_accuracy")
LAST = {0.0: "from the start", 0.5: "half-way", 0.7: "in the last segment"}
READ = (
    "Points of test accuracy, mean ± standard error over the seeds; differences are paired by seed, with a two-sided "
    "t-test; **bold** is p < 0.05, not corrected for the number of tests in the table. *Mean candidate* is the mean of "
    "the last merge's replicas, *ensemble* the mean of their probabilities (m forward passes an image); the best "
    "candidate is chosen with the test images themselves, so no one could have chosen it. BatchNorm was measured again "
    "on the training images for every model here, averaged or not.\n"
)


class Page(NamedTuple):
    """A study told.

    Attributes:
        text: Markdown.
        plots: SVG by file name.
        found: What it says, a line each.
    """

    text: str
    plots: dict[str, str]
    found: list[str]


def count(rows: Sequence[Row]) -> str:
    """How many seeds."""
    return str(len({row["seed"] for row in rows}))


def images(rows: Sequence[Row]) -> str:
    """Training images that all replicas saw together."""
    return f"{rows[0]['images.total']:,}" if rows and "images.total" in rows[0] else "–"


def soups(name: str, every: Rows) -> Page:
    """Merges, replicas and forks, beside one model of as much compute."""
    rows, plots, found = every[name], {}, list[str]()
    method = str(rows[0]["method"]).upper()
    data = "Fashion-MNIST" if name.startswith("fashion") else "digits"
    text = [f"# Soups at every pruning step: {method} on {data}\n", READ]
    for sparsity in sorted({row["sparsity"] for row in rows if "sparsity" in row}):
        at = select(rows, sparsity=sparsity)
        arms, single = soup_arms(at), Arm("one model", select(at, part="1-single"))
        body = []
        for arm in (single, *arms):
            ours, several = arm.values(ACCURACY), arm.rows[0].get("candidates.count", 1)
            longer = Arm("", select(at, part="3-longer", epochs=several * base(at))).values(ACCURACY)
            body.append(
                [
                    arm.name,
                    images(arm.rows),
                    count(arm.rows),
                    mean(list(ours.values())),
                    "" if arm is single else against(ours, single.values(ACCURACY)),
                    against(ours, longer) if several > 1 else "",
                    *(over_candidates(arm) if several > 1 else [""] * len(CANDIDATES)),
                ]
            )
        names = ("one model", "one m times as long", "mean candidate", "ensemble", "best candidate")
        columns = ["what", "training images", "seeds", "accuracy", *(f"− {other}" for other in names)]
        text += [f"## {100 * sparsity:g} % sparse\n", table(columns, body)]
        says = verdict(single, arms)
        text.append("".join(f"- {line}\n" for line in says))
        found += [f"{100 * sparsity:g} %. {line}" for line in says]
        plot = f"{100 * sparsity:g}"
        plots[plot] = bars([(a.name, list(a.values(ACCURACY).values())) for a in (single, *arms)], "test accuracy, %")
        text.append(f"![Accuracy of every arm at {100 * sparsity:g} %]({name}-{plot}.svg)\n")
    return Page("\n".join(text), plots, found)


def over_candidates(arm: Arm) -> list[str]:
    """A soup against the mean, the ensemble and the best of its candidates."""
    return [against(arm.values(ACCURACY), arm.values(key)) for key in CANDIDATES]


def soup_arms(at: Sequence[Row]) -> list[Arm]:
    """Baselines of more compute, then the soups, those that have runs."""
    arms = [Arm(f"one model, {t} times as long", select(at, part="3-longer", epochs=t * base(at))) for t in (3, 5)]
    for times, part in ((3, "4-batch3"), (5, "5-batch5")):
        arms.append(Arm(f"one model, {times} times the batch, as many steps", select(at, part=part)))
    for merge in ("uniform", "greedy"):
        for replicas in (3, 5):
            for start in sorted({row["replicas.start"] for row in at if "replicas.start" in row}):
                found = select(at, part="2-soups", merge=merge, replicas__count=replicas, replicas__start=start)
                arms.append(Arm(f"{merge} soup of {replicas}, forked {LAST.get(start, f'at {start:g}')}", found))
    return [arm for arm in arms if arm.rows]


def baselines(every: Rows, study: str) -> list[dict[int, float]]:
    """Accuracies at 95 % of one model, of one trained three times as long, and of one with three times the batch."""
    rows = select(every.get(study, []), sparsity=0.95)
    wanted: list[Row] = [{"part": "1-single"}, {"part": "3-longer", "epochs": 90}, {"part": "4-batch3"}]
    return [Arm("", select(rows, **each)).values(ACCURACY) for each in wanted]


def base(at: Sequence[Row]) -> int:
    """Epochs of the study's plain run."""
    longer = [row["epochs"] for row in at if row.get("part") == "3-longer"]
    return min(longer) // 3 if longer else 0


def verdict(single: Arm, arms: Sequence[Arm]) -> list[str]:
    """What the table says of the soups of three, in words."""
    lines = []
    longer = next((arm for arm in arms if "3 times as long" in arm.name), None)
    for arm in arms:
        if not arm.name.startswith("uniform soup of 3"):
            continue
        ours = arm.values(ACCURACY)
        parts = [won("the one model", ours, single.values(ACCURACY))]
        parts.append(won("its mean candidate", ours, arm.values("candidates.mean_accuracy")))
        if longer:
            parts.append(won("the model trained three times as long", ours, longer.values(ACCURACY)))
        lines.append(f"The {arm.name}: " + "; ".join(parts) + ".")
    return lines


def won(whom: str, ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Who was better, and whether the seeds are enough to say so."""
    found = differences(ours, theirs)
    if not found:
        return f"no runs to compare with {whom}"
    average, p = 100 * sum(found) / len(found), p_value(found)
    if p is None or p >= 0.05:
        return f"not told apart from {whom} ({signed(average)}" + (f", p{SPACE}{told(p)})" if p is not None else ")")
    return f"{'better' if average > 0 else 'worse'} than {whom} ({signed(average)}, p{SPACE}{told(p)})"
