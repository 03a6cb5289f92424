"""The page of a study in which a dense model is trained to its end first, and each cycle of retraining is averaged."""

from __future__ import annotations

from collections.abc import Sequence

from study_plots import bars
from study_soups import ACCURACY, CANDIDATES, MEAN, Page, Rows, count, images
from study_tables import Arm, Row, mean, select, table
from study_tests import Difference, compared, comparisons

LOSS = "test.loss"
SIZES = (3, 5, 10)
COLUMNS = ("what", "training images", "seeds", "accuracy, %", "NLL", "ECE", "worst class, %", "corrupted, %")
SHOWN = (
    (ACCURACY, 100.0, 2),
    (LOSS, 1.0, 4),
    ("test.ece", 1.0, 4),
    ("test.worst_class_accuracy", 100.0, 2),
    ("test.corrupted_accuracy", 100.0, 2),
)
READ = """Mean ± standard error over the seeds. Differences are paired by seed, with their 95 % interval by Student's
t; p is of a two-sided t-test, with Holm's correction over all tests of its table, **bold** where below
0.05. *Mean candidate* is the mean of the last cycle's replicas, *ensemble* the mean of their probabilities
(m forward passes an image). *Retrained m×* is one model from the same dense one, each of whose cycles is m
times as long: as many images as the soup of m, one after another. *Corrupted* is the mean over sixteen
kinds of corruption at five severities.
"""


def saturated(name: str, every: Rows) -> Page:
    """Soups of several sizes, beside one model, their candidates and ensemble, and as long a retraining."""
    rows, parts, found, plots = every[name], [], list[str](), {}
    method = str(rows[0]["method"]).upper()
    for sparsity in sorted({row["sparsity"] for row in rows}):
        at, label = select(rows, sparsity=sparsity), f"{100 * sparsity:g} %"
        single = Arm("one model", part(at, "single"))
        soups = {m: Arm(f"soup of {m}", part(at, f"soup{m}")) for m in SIZES}
        longer = {m: Arm(f"one model, retrained {m}×", part(at, f"retrained{m}")) for m in SIZES}
        arms = [arm for arm in (single, *soups.values(), *longer.values()) if arm.rows]
        body = [[arm.name, images(arm.rows), count(arm.rows), *_reached(arm)] for arm in arms]
        parts += [f"## {label} sparse\n", table(COLUMNS, body)]
        differences: dict[str, dict[str, Difference]] = {}
        for m, soup in soups.items():
            for what, other, accuracy, loss in (
                ("one model", single, ACCURACY, LOSS),
                ("its mean candidate", soup, MEAN, "candidates.mean_loss"),
                ("its ensemble", soup, CANDIDATES[1], "candidates.ensemble_loss"),
                (f"retrained {m}×", longer[m], ACCURACY, LOSS),
            ):
                pairs = compared(soup, other, {"accuracy": (ACCURACY, accuracy), "NLL": (LOSS, loss)})
                differences |= {f"soup of {m} − {what}": pairs} if pairs else {}
        if differences:
            text, said = comparisons(differences)
            parts.append(text)
            found += [f"{label}, {line}" for line in said]
        plot = f"{100 * sparsity:g}"
        plots[plot] = bars([(arm.name, list(arm.values(ACCURACY).values())) for arm in arms], "test accuracy, %")
        parts.append(f"![Accuracy of every arm at {label}]({name}-{plot}.svg)\n")
    head = f"""# Soups where training is saturated: {method} on digits

A dense model is trained to its end, 150 epochs; then three cycles prune it and retrain it, 30 epochs each. Replicas
fork at every pruning and are averaged at the end of every cycle. This is the regime of Sparse Model Soups ([arXiv
2306.16788](https://arxiv.org/abs/2306.16788)), and retraining m times as long is its baseline of equal compute.

{READ}"""
    return Page("\n".join([head, *parts]), plots, found)


def part(at: Sequence[Row], ending: str) -> list[Row]:
    """Rows of the sweep file `N-ending`."""
    return [row for row in at if row["part"].partition("-")[2] == ending]


def _reached(arm: Arm) -> list[str]:
    """What an arm reached, by each measure that is shown."""
    return [mean(list(arm.values(key).values()), scale, digits) for key, scale, digits in SHOWN]
