"""The page of each study: what was asked, the table, and what it says, worked out from the rows alone."""

from __future__ import annotations

from collections.abc import Callable

from study_plots import bars, lines
from study_soups import ACCURACY, READ, Page, Rows, count, images, soup_arms, soups, verdict
from study_tables import Arm, against, differences, mean, select, table


def page(name: str, every: Rows) -> Page:
    """A study's page and plots from all studies' rows."""
    make: Callable[[str, Rows], Page] = {
        "digits-gmp": soups,
        "digits-bimp": soups,
        "fashion": soups,
        "digits-fork": fork,
        "digits-late": late,
        "digits-vary": vary,
        "digits-robust": robust,
        "digits-apart": apart,
        "digits-methods": methods,
    }[name]
    text, plots = make(name, every)
    command = "make studies-fashion" if name == "fashion" else "make studies-digits"
    made = f"\nMade from [{name}.jsonl]({name}.jsonl) by `{command}`; the sweep files are in `configs/studies/`.\n"
    return text + made, {f"{name}-{plot}.svg": svg for plot, svg in plots.items()}


def fork(name: str, every: Rows) -> Page:
    """Barrier and gain against the learning rate at the fork."""
    rows, body = every[name], []
    starts = sorted({row["replicas.start"] for row in rows})
    none = Arm("", select(every.get("digits-gmp", []), part="1-single", sparsity=0.95)).values(ACCURACY)
    gains, accuracies = [], []
    for start in starts:
        arm = Arm(str(start), select(rows, replicas__start=start))
        ours = arm.values(ACCURACY)
        gain = differences(ours, arm.values("candidates.mean_accuracy"))
        gains.append([100 * value for value in gain])
        accuracies.append([100 * value for value in ours.values()])
        body.append(
            [
                f"{start:g}",
                f"{arm.rows[0]['first.lr']:.3g}",
                images(arm.rows),
                mean(list(arm.values("first.barrier").values()), 1.0, 3),
                mean(list(arm.values("first.turn.mean").values()), 1.0, 0) + "°",
                mean(list(arm.values("last.barrier").values()), 1.0, 3),
                mean(list(ours.values())),
                against(ours, arm.values("candidates.mean_accuracy")),
                against(ours, none),
            ]
        )
    columns = [
        "fork at",
        "learning rate there",
        "training images",
        "barrier of the first merge",
        "angle of its replicas' ways",
        "barrier of the last",
        "accuracy",
        "− mean candidate",
        "− one model",
    ]
    text = f"""# How early it pays to fork

GMP to 95 % on digits, uniform soups of three, {count(rows)} seeds. A fork at 0.3 means that one model trains alone for
the first 30 % of the budget; the learning rate falls all the while (cosine), and no restart brings it back. The barrier
is loss(soup) − mean loss of its candidates, held out: below 0 where averaging helps at once.

{READ}
{table(columns, body)}
![Accuracy by the fraction of the budget at which replicas fork]({name}-start.svg)
![Gain over the mean candidate]({name}-gain.svg)
"""
    return text, {
        "start": lines(starts, {"soup": accuracies}, "fraction of the budget before the fork", "test accuracy, %"),
        "gain": lines(starts, {"soup less mean candidate": gains}, "fraction of the budget before the fork", "points"),
    }


LATE = {56: 90, 94: 150}
"""Epochs of one model that see as many images as a run of so many epochs with three replicas in its last segment."""


def late(name: str, every: Rows) -> Page:
    """Soups of the last segment alone, at the compute of one model trained longer."""
    rows, parts, drawn = every[name], [], []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        body = []
        for epochs, longer in LATE.items():
            plain = Arm("", select(every.get("digits-gmp", []), part="3-longer", sparsity=sparsity, epochs=longer))
            body.append(
                [f"one model, {longer} epochs", images(plain.rows), mean(list(plain.values(ACCURACY).values()))]
            )
            body[-1] += ["", "", ""]
            label = f"{100 * sparsity:g} %, "
            drawn.append((f"{label}one model, {longer} epochs", list(plain.values(ACCURACY).values())))
            for axis in ("seed", "lr"):
                arm = Arm("", select(rows, sparsity=sparsity, epochs=epochs, replicas__vary=axis))
                ours, what = arm.values(ACCURACY), f"soup of 3, `{axis}`, {epochs} epochs"
                gains = [against(ours, plain.values(ACCURACY))]
                gains += [against(ours, arm.values(f"candidates.{key}_accuracy")) for key in ("mean", "ensemble")]
                body.append([what, images(arm.rows), mean(list(ours.values())), *gains])
                drawn.append((label + what.replace("`", ""), list(ours.values())))
        columns = ["what", "training images", "accuracy", "− one model", "− mean candidate", "− ensemble"]
        parts += [f"## {100 * sparsity:g} % sparse\n", table(columns, body)]
    text = f"""# A late soup against longer training, at the same compute

GMP on digits, {count(rows)} seeds. The budget of one model that trains for 90 or 150 epochs goes into a shorter run
instead, whose last segment (30 % of it) trains three replicas and ends in their uniform soup. They differ in batch
order and augmentation (`seed`), or in learning rate too (`lr`, half to twice the base value).

{READ}
"""
    return text + "\n".join(parts) + f"\n![Accuracy at equal compute]({name}-compute.svg)\n", {
        "compute": bars(drawn, "test accuracy, %")
    }


def vary(name: str, every: Rows) -> Page:
    """What replicas differ in."""
    rows = every[name]
    axes = sorted({row["replicas.vary"] for row in rows}, key=lambda axis: (axis != "seed", axis))
    arms = {axis: Arm(axis, select(rows, replicas__vary=axis)) for axis in axes}
    plain, body = arms["seed"].values(ACCURACY), []
    for axis, arm in arms.items():
        ours = arm.values(ACCURACY)
        body.append(
            [
                f"`{axis}`",
                images(arm.rows),
                mean(list(ours.values())),
                "" if axis == "seed" else against(ours, plain),
                mean(list(arm.values("candidates.mean_accuracy").values())),
                against(ours, arm.values("candidates.mean_accuracy")),
                against(ours, arm.values("candidates.ensemble_accuracy")),
                mean(list(arm.values("last.distance.mean").values()), 1.0, 2),
            ]
        )
    columns = [
        "`--replicas.vary`",
        "training images",
        "accuracy",
        "− `seed`",
        "mean candidate",
        "soup − mean candidate",
        "soup − ensemble",
        "distance of candidates",
    ]
    text = f"""# What replicas should differ in

GMP to 95 % on digits, uniform soups of three, {count(rows)} seeds, each axis at its default values. Replicas always
differ in batch order and augmentation (`seed`); the other axes add to it.

{READ}
{table(columns, body)}
![Accuracy by axis]({name}-axes.svg)
"""
    return text, {
        "axes": bars([(a, list(arm.values(ACCURACY).values())) for a, arm in arms.items()], "test accuracy, %")
    }


MEASURES = {
    "accuracy": ("test.accuracy", 100.0, 2),
    "worst class": ("test.worst_class_accuracy", 100.0, 2),
    "corrupted": ("test.corrupted_accuracy", 100.0, 2),
    "NLL": ("test.loss", 1.0, 4),
    "ECE": ("test.ece", 1.0, 4),
    "Brier": ("test.brier", 1.0, 4),
}


def robust(name: str, every: Rows) -> Page:
    """Which measures the soup moves."""
    rows, parts = every[name], []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        at = select(rows, sparsity=sparsity)
        single = Arm("one model", select(at, part="1-single", epochs=30))
        longer = Arm("three times as long", select(at, part="1-single", epochs=90))
        soup = Arm("soup of three", select(at, part="2-soup"))
        body = []
        for label, (key, scale, digits) in MEASURES.items():
            values = [arm.values(key) for arm in (single, longer, soup)]
            cells = [mean(list(found.values()), scale, digits) for found in values]
            gains = [against(values[2], other, scale, digits) for other in values[:2]]
            body.append([label, *cells, *gains])
        columns = [
            "measure",
            "one model",
            "three times as long",
            "soup of three",
            "soup − one model",
            "soup − three times as long",
        ]
        parts += [f"## {100 * sparsity:g} % sparse, {count(at)} seeds\n", table(columns, body)]
    text = f"""# What else the soup moves: calibration, worst class, corruptions

GMP on digits; a soup of three forked at the default 0.2. *Corrupted* is the mean accuracy over sixteen kinds of
corruption at five severities. For NLL, ECE and Brier less is better.

{READ}
"""
    return text + "\n".join(parts), {}


def apart(name: str, every: Rows) -> Page:
    """Averaging at every pruning step against averaging once."""
    rows, body = every[name], []
    for sparsity in sorted({row["sparsity"] for row in select(rows, part="2-apart")}):
        averaged = Arm("", select(rows, part="3-averaged", sparsity=sparsity))
        soup = Arm("", select(every.get("digits-robust", []), part="2-soup", sparsity=sparsity)).values(ACCURACY)
        alone: dict[int, list[float]] = {}
        for row in select(rows, part="2-apart", sparsity=sparsity):
            alone.setdefault(int(str(row["model.init"]).rpartition("=")[2]), []).append(row[ACCURACY])
        means = {seed: sum(values) / len(values) for seed, values in alone.items() if values}
        ours = averaged.values(ACCURACY)
        body.append(
            [
                f"{100 * sparsity:g} %",
                count(averaged.rows),
                mean(list(means.values())),
                mean(list(ours.values())),
                mean(list(soup.values())),
                against(soup, ours),
            ]
        )
    columns = [
        "sparsity",
        "seeds",
        "a model of the three",
        "averaged once, pruned again",
        "averaged at every step",
        "every step − once",
    ]
    text = f"""# Averaging only at the end

The alternative to a shared mask: three GMP models on digits start from one dense parent (6 of 30 epochs), each prunes
itself to a mask of its own in the other 24, and their mean, under the union of the masks, is pruned once more to the
sparsity wanted and gets its BatchNorm measured again. As many images as the soup of three forked at 0.2.

{READ}
{table(columns, body)}"""
    return text, {}


def methods(name: str, every: Rows) -> Page:
    """All methods, alone and as a soup."""
    rows, body, drawn = every[name], [], []
    for method in dict.fromkeys(row["method"] for row in rows):
        alone = Arm(method, select(rows, method=method, merge="none"))
        soup = Arm(method, select(rows, method=method, merge="uniform"))
        if not alone.rows or not soup.rows:
            continue
        ours = soup.values(ACCURACY)
        cells = [mean(list(alone.values(ACCURACY).values())), mean(list(ours.values()))]
        gains = [against(ours, alone.values(ACCURACY)), against(ours, soup.values("candidates.mean_accuracy"))]
        body.append([f"`{method}`", count(soup.rows), *cells, *gains])
        drawn += [(f"{method}", list(alone.values(ACCURACY).values())), (f"{method} soup", list(ours.values()))]
    columns = ["method", "seeds", "one model", "soup of three", "soup − one model", "soup − mean candidate"]
    text = f"""# Other methods

95 % on digits, uniform soups of three forked at 0.2, defaults otherwise. Three seeds say little: read the large
differences only.

{READ}
{table(columns, body)}
![Accuracy of each method, alone and as a soup]({name}-methods.svg)
"""
    return text, {"methods": bars(drawn, "test accuracy, %")}


def index(every: Rows) -> str:
    """The page that leads to the others, with what the soups' tables say."""
    parts = [
        "# Results\n",
        "What averaging at every pruning step brings, measured with this tool, at equal compute too, the disappointing "
        "cells included. Each page is made from rows that lie beside it; `make studies-digits` trains them anew.\n",
        table(
            ["study", "runs"],
            [[f"[{title(page(name, every)[0])}]({name}.md)", len(rows)] for name, rows in every.items()],
        ),
    ]
    for name in ("digits-gmp", "digits-bimp", "fashion"):
        for sparsity in sorted({row["sparsity"] for row in every.get(name, [])}):
            at = select(every[name], sparsity=sparsity)
            words = verdict(Arm("", select(at, part="1-single")), soup_arms(at))
            if words.strip():
                parts.append(f"**{title(page(name, every)[0])}, {100 * sparsity:g} %**\n\n{words}")
    return "\n".join(parts)


def title(text: str) -> str:
    """A page's heading."""
    return text.partition("\n")[0].removeprefix("# ")
