"""The pages of studies that ask one thing each: axes, measures, averaging once, methods, means along the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from study_page import Page
from study_soups import NO_ARM, arms_of
from study_tables import MEASURES, Arm, Row, Rows, mean, part, select, sparsities


def vary(name: str, every: Rows) -> Page:
    """What replicas differ in."""
    page = Page(
        name,
        "What replicas should differ in",
        """\
Digits, 95 %, uniform soups of three, forked at the default 0.2, each axis at its default values. Replicas always differ
in batch order and augmentation (`seed`); the other axes add to it. One model trained three times as long, or with three
times the batch, sees 36,000 images; those runs are of [digits-gmp](digits-gmp.md) and [digits-bimp](digits-bimp.md).
""",
    )
    facts = {
        "mean candidate, %": lambda arm: mean(arm.candidates()["its mean candidate"].reached("accuracy")),
        "distance of candidates": lambda arm: mean(arm.values("last.distance.mean")),
    }
    for method in ("GMP", "BIMP"):
        axes = by_axis(part(every[name], method.lower()))
        _, *others = arms_of(select(every.get(f"digits-{method.lower()}", []), sparsity=0.95)).baselines().items()
        larger, plain = dict(others), axes.get("seed", NO_ARM)
        pairs = [
            (arm, ({} if arm is plain else {"`seed`": plain}) | arm.candidates() | larger)
            for arm in sorted(axes.values(), key=lambda arm: arm is plain)  # whose columns are all, first
        ]
        page.section(method, [*axes.values(), *larger.values()], pairs, facts=facts)
    return page


def vary_saturated(name: str, every: Rows) -> Page:
    """What replicas differ in, where training is saturated."""
    page = Page(
        name,
        "What replicas should differ in, where training is saturated",
        """\
Soups of three by IMP on digits as in [digits-saturated](digits-saturated.md), whose rows are those of `seed` and of the
longer retraining. Replicas always differ in batch order and augmentation (`seed`); each axis adds to it, at its default
values.
""",
    )
    for label, at in sparsities(every[name]).items():
        beside = saturated(every, at)
        plain, longer = Arm("`seed`", part(beside, "soup3")), Arm("one model, retrained 3×", part(beside, "retrained3"))
        soups = list(by_axis(at).values())
        pairs = [(arm, {"`seed`": plain, **arm.candidates("mean"), longer.name: longer}) for arm in soups]
        page.section(label, [plain, *soups, longer], pairs)
    return page


def by_axis(rows: Sequence[Row]) -> dict[str, Arm]:
    """Soups by what their replicas differ in, `seed` first."""
    axes = sorted({row["replicas.vary"] for row in rows}, key=lambda axis: (axis != "seed", axis))
    return {axis: Arm(f"`{axis}`", select(rows, replicas__vary=axis)) for axis in axes}


def saturated(every: Rows, at: Sequence[Row]) -> list[Row]:
    """Rows of digits-saturated at the sparsity of these."""
    return select(every.get("digits-saturated", []), sparsity=at[0]["sparsity"])


def robust(name: str, every: Rows) -> Page:
    """Which measures the soup moves."""
    page = Page(
        name,
        "What else the soup moves: calibration, worst class, corruptions",
        """\
Digits; a soup of three forked at the default 0.2, beside one model and one trained three times as long.
""",
    )
    for method, alone, averaged in (("GMP", "single", "soup"), ("BIMP", "bimp-single", "bimp-soup")):
        for label, at in sparsities(every[name]).items():
            if not part(at, averaged):
                continue
            single = Arm("one model", select(part(at, alone), epochs=30))
            longer = Arm("one model, 3 times as long", select(part(at, alone), epochs=90))
            soup = Arm("soup of three", part(at, averaged))
            pairs = [(soup, {"one model": single, "one 3 times as long": longer})]
            arms = [single, longer, soup]
            page.section(f"{method}, {label}", arms, pairs, measures=list(MEASURES), drawn="corrupted")
    return page


APART = {
    "digits-apart": (
        "Averaging only at the end",
        """\
The alternative to a shared mask: three GMP models on digits start from one dense parent (6 of 30 epochs), each prunes
itself to a mask of its own in the other 24, and their mean, under the union of the masks, is pruned once more to the
sparsity wanted and gets its BatchNorm measured again. As many images as the soup of three forked at 0.2.
""",
        ("digits-robust", "soup"),
    ),
    "digits-saturated-apart": (
        "Averaging only at the end, where training is saturated",
        """\
The alternative to a shared mask (IMP-RePrune): three models start from one dense parent of 150 epochs, each prunes
itself in three cycles of 30 epochs, and their mean, under the union of their masks, is pruned once more to the sparsity
wanted and gets its BatchNorm measured again. As many images as the soup of three, which is of
[digits-saturated](digits-saturated.md) and averages at every pruning.
""",
        ("digits-saturated", "soup3"),
    ),
}


def apart(name: str, every: Rows) -> Page:
    """Averaging at every pruning step against averaging models once that were pruned apart."""
    title, head, (beside, soups) = APART[name]
    page = Page(name, title, head)
    for label, at in sparsities(part(every[name], "apart")).items():
        of_parent: dict[int, list[Row]] = {}
        for row in at:
            of_parent.setdefault(int(str(row["model.init"]).rpartition("=")[2]), []).append(row)
        kept = [key for key, *_ in MEASURES.values() if all(key in row for row in at)]
        means = [{"seed": s, **{key: fmean(r[key] for r in rows) for key in kept}} for s, rows in of_parent.items()]
        level = at[0]["sparsity"]
        alone = Arm("a model of the three", means)
        again = Arm("averaged once, pruned again", select(part(every[name], "averaged"), sparsity=level))
        soup = Arm("averaged at every step", select(part(every.get(beside, []), soups), sparsity=level))
        page.section(label, [alone, again, soup], [(soup, {again.name: again}), (again, {alone.name: alone})])
    return page


def methods(name: str, every: Rows) -> Page:
    """All methods, alone, as a soup, and alone with three times the compute."""
    page = Page(
        name,
        "Other methods",
        """\
95 % on digits, uniform soups of three forked at 0.2, defaults otherwise; beside them one model trained three times as
long, and one with three times the batch for as many steps. Three seeds say little of any one method. The second section
takes each method's means as one observation; methods share their seeds, so that its p is rather too small.
""",
    )
    alone = ("one model", "one 3 times as long", "one with 3 times the batch")
    arms, pairs, means = list[Arm](), [], dict[str, list[Row]]()
    for place, method in enumerate(dict.fromkeys(row["method"] for row in every[name])):
        at = select(every[name], method=method)
        first = part(at, "methods")
        wanted = (select(first, merge="none"), part(at, "longer"), part(at, "batch3"), select(first, merge="uniform"))
        if not all(wanted):
            continue
        *others, soup = (Arm(f"`{method}`, {what}", rows) for what, rows in zip((*alone, "soup"), wanted, strict=True))
        over = dict(zip(alone, others, strict=True)) | soup.candidates()
        arms += [*others, soup]
        pairs.append((soup, over))
        for what, arm in {**over, "soup": soup}.items():
            reached = {key: list(arm.values(key).values()) for key, *_ in MEASURES.values()}
            means.setdefault(what, []).append({"seed": place} | {k: fmean(v) for k, v in reached.items() if v})
    page.section("Each method", arms, pairs)
    if means:
        *others, soup = (Arm(what, rows) for what, rows in means.items())
        over = {arm.name: arm for arm in others}
        page.section("All methods, a mean each", [*others, soup], [(soup, over)], drawn="", counted="methods")
    page.found = [line for line in page.found if line.startswith("All methods")]
    return page


def trajectories(name: str, every: Rows) -> Page:
    """Averages along the trajectory, of replicas, and of both, at the same compute."""
    page = Page(
        name,
        "A soup of steps, of replicas, and of both",
        """\
IMP on digits as in [digits-saturated](digits-saturated.md), whose rows are those of the plain soup and of the longer
retraining. *SWA* is the mean of the weights over the last quarter of each segment's steps ([arXiv
1803.05407](https://arxiv.org/abs/1803.05407)), *EMA* their exponential moving average, 0.98 a step, over that quarter.
All arms see as many images.
""",
    )
    kinds = {1.0: "SWA", 0.98: "EMA"}
    for label, at in sparsities(every[name]).items():
        beside = saturated(every, at)
        longer, soup = (
            Arm("one model, retrained 3×", part(beside, "retrained3")),
            Arm("soup of 3", part(beside, "soup3")),
        )
        alone, both = (
            [Arm(f"{arm.name}, {kind}", select(part(at, name), merge__decay=decay)) for decay, kind in kinds.items()]
            for arm, name in ((longer, "longer"), (soup, "soups"))
        )
        pairs = [(steps, {longer.name: longer}) for steps in alone]
        pairs.append((soup, {steps.name: steps for steps in alone}))
        pairs += [(each, {soup.name: soup, steps.name: steps}) for each, steps in zip(both, alone, strict=True)]
        page.section(label, [longer, *alone, soup, *both], pairs)
    return page


def recipes(name: str, every: Rows) -> Page:
    """Soups of pruning during training, by recipe, against one gmp model of the same length and of the same compute."""
    page = Page(
        name,
        "Recipes for pruning during training",
        """\
Digits, 98 %: soups of three by `gmp` and `dpf`, in a budget of 30 epochs and in one of 240, where a longer training
gains little. *From the start*: replicas from the first segment on, along one falling rate. *Restarts*: a dense model
first, then prunings at 0.6, 0.7 and 0.8 of the budget, after each of which the rate restarts (`--method.retrain llr`)
and replicas fork. Replicas differ in batch order and augmentation (`seed`), or in the learning rate, too (`lr`). *One
gmp model* takes as long as a soup whose replicas train side by side; the one *3 times as long* sees as many images as
a soup from the start.
""",
    )
    for epochs in (30, 240):
        at = [row for row in every[name] if row["epochs"] == epochs]
        plain = Arm("one gmp model", select(part(at, "single"), method="gmp"))
        longer = Arm(
            "one gmp model, 3 times as long", select(part(every[name], "longer"), method="gmp", epochs=3 * epochs)
        )
        soups = [
            Arm(f"{method}, {what}, `{axis}`", select(part(at, ending), method=method, replicas__vary=axis))
            for method in ("gmp", "dpf")
            for ending, what in (("soups", "from the start"), ("restarts", "restarts"))
            for axis in ("seed", "lr")
        ]
        others = [
            Arm("one dpf model", select(part(at, "single"), method="dpf")),
            Arm("one dpf model, 3 times as long", select(part(every[name], "longer"), method="dpf", epochs=3 * epochs)),
        ]
        pairs = [
            (soup, {plain.name: plain, longer.name: longer, **soup.candidates("mean")}) for soup in soups if soup.rows
        ]
        if plain.rows:
            page.section(f"{epochs} epochs", [plain, longer, *others, *soups], pairs)
    return page
