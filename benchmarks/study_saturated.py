"""The pages of studies in which a dense model is trained to its end first, and each cycle of retraining is averaged."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from study_plots import bars
from study_soups import ACCURACY, CANDIDATES, MEAN, Page, Rows, count, images
from study_tables import Arm, Row, mean, select, table
from study_tests import compared, comparisons

LOSS = "test.loss"
SIZES = (3, 5, 10)
SHARED = (ACCURACY, LOSS, "test.ece")
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
    page = Told(name)
    for sparsity in sorted({row["sparsity"] for row in every[name]}):
        at = select(every[name], sparsity=sparsity)
        single = Arm("one model", part(at, "single"))
        soups = {m: Arm(f"soup of {m}", part(at, f"soup{m}")) for m in SIZES}
        longer = {m: Arm(f"one model, retrained {m}×", part(at, f"retrained{m}")) for m in SIZES}
        pairs = [
            (f"{soup.name} − {what}", soup, other, keys)
            for m, soup in soups.items()
            for what, other, keys in (
                ("one model", single, (ACCURACY, LOSS)),
                ("its mean candidate", soup, (MEAN, "candidates.mean_loss")),
                ("its ensemble", soup, (CANDIDATES[1], "candidates.ensemble_loss")),
                (f"retrained {m}×", longer[m], (ACCURACY, LOSS)),
            )
        ]
        page.add(sparsity, [single, *soups.values(), *longer.values()], pairs)
    first = every[name][0]
    dense, method = round(first["epochs"] * first["method.dense"]), str(first["method"]).upper()
    cycle, data = (first["epochs"] - dense) // 3, "Fashion-MNIST" if name.startswith("fashion") else "digits"
    note = "Training images are a fifth of Fashion-MNIST's, without augmentation.\n" if data != "digits" else ""
    return page.whole(f"""# Soups where training is saturated: {method} on {data}

A dense model is trained to its end, {dense} epochs; then three cycles prune it and retrain it, {cycle} epochs each.
Replicas fork at every pruning and are averaged at the end of every cycle. This is the regime of Sparse Model Soups
([arXiv 2306.16788](https://arxiv.org/abs/2306.16788)), and retraining m times as long is its baseline of equal compute.
{note}""")


def vary(name: str, every: Rows) -> Page:
    """What replicas differ in, where training is saturated."""
    page, beside = Told(name), every.get("digits-saturated", [])
    for sparsity in sorted({row["sparsity"] for row in every[name]}):
        at = select(beside, sparsity=sparsity)
        plain, longer = Arm("`seed`", part(at, "soup3")), Arm("one model, retrained 3×", part(at, "retrained3"))
        axes = dict.fromkeys(row["replicas.vary"] for row in every[name])
        soups = [Arm(f"`{a}`", select(every[name], sparsity=sparsity, replicas__vary=a)) for a in axes]
        pairs = [
            (f"{soup.name} − {what}", soup, other, keys)
            for soup in soups
            for what, other, keys in (
                ("`seed`", plain, (ACCURACY, LOSS)),
                ("its mean candidate", soup, (MEAN, "candidates.mean_loss")),
                ("retrained 3×", longer, (ACCURACY, LOSS)),
            )
        ]
        page.add(sparsity, [plain, *soups, longer], pairs)
    return page.whole("""# What replicas should differ in, where training is saturated

Soups of three by IMP on digits as in [digits-saturated](digits-saturated.md), whose rows are those of `seed` and of the
longer retraining. Replicas always differ in batch order and augmentation (`seed`); each axis adds to it, at its default
values.
""")


def trajectories(name: str, every: Rows) -> Page:
    """Averages along the trajectory, of replicas, and of both, at the same compute."""
    page, beside = Told(name), every.get("digits-saturated", [])
    kinds = {1.0: "SWA", 0.98: "EMA"}
    for sparsity in sorted({row["sparsity"] for row in every[name]}):
        own, at = select(every[name], sparsity=sparsity), select(beside, sparsity=sparsity)
        longer, soup = Arm("one model, retrained 3×", part(at, "retrained3")), Arm("soup of 3", part(at, "soup3"))
        alone, both = (
            {d: Arm(f"{arm.name}, {kind}", select(part(own, ending), merge__decay=d)) for d, kind in kinds.items()}
            for arm, ending in ((longer, "longer"), (soup, "soups"))
        )
        pairs = [
            (f"{ours.name} − {other.name}", ours, other, (ACCURACY, LOSS))
            for d in kinds
            for ours, other in ((alone[d], longer), (both[d], soup), (soup, alone[d]), (both[d], alone[d]))
        ]
        page.add(sparsity, [longer, *alone.values(), soup, *both.values()], pairs)
    return page.whole("""# A soup of steps, of replicas, and of both

IMP on digits as in [digits-saturated](digits-saturated.md), whose rows are those of the plain soup and of the longer
retraining. *SWA* is the mean of the weights over the last quarter of each segment's steps ([arXiv
1803.05407](https://arxiv.org/abs/1803.05407)), *EMA* their exponential moving average, 0.98 a step, over that quarter.
All arms see as many images.
""")


def once(name: str, every: Rows) -> Page:
    """Averaging at every pruning against averaging models once that were pruned apart (IMP-RePrune)."""
    page = Told(name)
    for sparsity in sorted({row["sparsity"] for row in select(every[name], part="2-apart")}):
        soup = Arm("soup of 3", part(select(every.get("digits-saturated", []), sparsity=sparsity), "soup3"))
        again = Arm("averaged once, pruned again", select(every[name], part="3-averaged", sparsity=sparsity))
        apart: dict[int, list[Row]] = {}
        for row in select(every[name], part="2-apart", sparsity=sparsity):
            apart.setdefault(int(str(row["model.init"]).rpartition("=")[2]), []).append(row)
        alone = Arm(
            "a model of the three, pruned apart",
            [{"seed": s, **{key: fmean(row[key] for row in rows) for key in SHARED}} for s, rows in apart.items()],
        )
        both = (ACCURACY, LOSS)
        pairs = [(f"{ours.name} − {other.name}", ours, other, both) for ours, other in ((soup, again), (again, alone))]
        page.add(sparsity, [alone, again, soup], pairs)
    return page.whole("""# Averaging only at the end, where training is saturated

The alternative to a shared mask (IMP-RePrune): three models start from one dense parent of 150 epochs, each prunes
itself in three cycles of 30 epochs, and their mean, under the union of their masks, is pruned once more to the sparsity
wanted and gets its BatchNorm measured again. As many images as the soup of three, which is of
[digits-saturated](digits-saturated.md) and averages at every pruning.
""")


Pair = tuple[str, Arm, Arm, tuple[str, str]]
"""What is compared: ours, the other, and the other's keys of accuracy and NLL."""


class Told:
    """A page of arms and their comparisons, a section for each sparsity."""

    def __init__(self, name: str) -> None:
        self.name, self.parts, self.found = name, list[str](), list[str]()
        self.plots: dict[str, str] = {}

    def add(self, sparsity: float, arms: Sequence[Arm], pairs: Sequence[Pair]) -> None:
        """A section; arms and comparisons without rows are left out."""
        arms, label, plot = [arm for arm in arms if arm.rows], f"{100 * sparsity:g} %", f"{100 * sparsity:g}"
        body = [[arm.name, images(arm.rows), count(arm.rows), *_reached(arm)] for arm in arms]
        self.parts += [f"## {label} sparse\n", table(COLUMNS, body)]
        differences = {
            what: compared(ours, other, {"accuracy": (ACCURACY, accuracy), "NLL": (LOSS, loss)})
            for what, ours, other, (accuracy, loss) in pairs
        }
        if differences := {what: each for what, each in differences.items() if each}:
            text, said = comparisons(differences)
            self.parts.append(text)
            self.found += [f"{label}, {line}" for line in said]
        self.plots[plot] = bars([(arm.name, list(arm.values(ACCURACY).values())) for arm in arms], "test accuracy, %")
        self.parts.append(f"![Accuracy of every arm at {label}]({self.name}-{plot}.svg)\n")

    def whole(self, head: str) -> Page:
        """The page under this head."""
        return Page("\n".join([f"{head}\n{READ}", *self.parts]), self.plots, self.found)


def part(at: Sequence[Row], ending: str) -> list[Row]:
    """Rows of the sweep file `N-ending`."""
    return [row for row in at if row["part"].partition("-")[2] == ending]


def _reached(arm: Arm) -> list[str]:
    """What an arm reached, by each measure that is shown."""
    return [mean(list(arm.values(key).values()), scale, digits) for key, scale, digits in SHOWN]
