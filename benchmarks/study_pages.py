"""The page of each study: what was asked, the table, and what it says, worked out from the rows alone."""

from __future__ import annotations

from study_plots import bars
from study_soups import ACCURACY, CANDIDATES, MEAN, READ, Page, Rows, baselines, count, images, over_candidates
from study_tables import Arm, Row, against, mean, select, table

VARIED = (
    "`--replicas.vary`",
    "training images",
    "accuracy",
    "− `seed`",
    "mean candidate",
    "soup − mean candidate",
    "soup − ensemble",
    "soup − best candidate",
    "soup − 3 times as long",
    "soup − 3 times the batch",
    "distance of candidates",
)


def vary(name: str, every: Rows) -> Page:
    """What replicas differ in."""
    parts, found, drawn = [], [], []
    for method, part in (("GMP", "1-gmp"), ("BIMP", "2-bimp")):
        if not (rows := select(every[name], part=part)):
            continue
        body = []
        axes = sorted({row["replicas.vary"] for row in rows}, key=lambda axis: (axis != "seed", axis))
        arms = {axis: Arm(axis, select(rows, replicas__vary=axis)) for axis in axes}
        plain = arms["seed"].values(ACCURACY) if "seed" in arms else {}
        _, *larger = baselines(every, f"digits-{method.lower()}")
        for axis, arm in arms.items():
            ours = arm.values(ACCURACY)
            body.append(
                [
                    f"`{axis}`",
                    images(arm.rows),
                    mean(list(ours.values())),
                    "" if axis == "seed" else against(ours, plain),
                    mean(list(arm.values(MEAN).values())),
                    *over_candidates(arm),
                    *(against(ours, other) for other in larger),
                    mean(list(arm.values("last.distance.mean").values()), 1.0, 2),
                ]
            )
            drawn.append((f"{method}, {axis}", list(ours.values())))
        gains = [f"`{axis}` {against(arm.values(ACCURACY), plain)}" for axis, arm in arms.items() if axis != "seed"]
        found.append(f"{method}, over batch order and augmentation alone: {', '.join(gains)}.")
        parts.append(f"## {method}, {count(rows)} seeds\n\n{table(VARIED, body)}")
    text = f"""# What replicas should differ in

Digits, 95 %, uniform soups of three, forked at the default 0.2, each axis at its default values. Replicas always differ
in batch order and augmentation (`seed`); the other axes add to it. One model trained three times as long, or with three
times the batch, sees 36,000 images; those runs are of [digits-gmp](digits-gmp.md) and [digits-bimp](digits-bimp.md).

{READ}
"""
    text += "\n".join(parts) + f"\n![Accuracy by axis]({name}-axes.svg)\n"
    return Page(text, {"axes": bars(drawn, "test accuracy, %")}, found)


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
    parts, found, drawn = [], [], []
    columns = ["measure", "one model", "three times as long", "soup of three", "soup − one model", "soup − longer"]
    studies = (("GMP", "1-single", "2-soup"), ("BIMP", "3-bimp-single", "4-bimp-soup"))
    at = [(row, sparsity) for row in studies for sparsity in sorted({row["sparsity"] for row in every[name]})]
    for (method, alone, averaged), sparsity in at:
        if not (averaging := select(every[name], part=averaged, sparsity=sparsity)):
            continue
        single, longer = (Arm("", select(every[name], part=alone, sparsity=sparsity, epochs=e)) for e in (30, 90))
        soup, label = Arm("", averaging), f"{method}, {100 * sparsity:g} %"
        body, moved = [], []
        for measure, (key, scale, digits) in MEASURES.items():
            values = [arm.values(key) for arm in (single, longer, soup)]
            cells = [mean(list(found.values()), scale, digits) for found in values]
            gains = [against(values[2], other, scale, digits) for other in values[:2]]
            body.append([measure, *cells, *gains])
            moved += [f"{measure} {gains[0]}"] if gains[0].startswith("**") else []
        arms = (("one model", single), ("longer", longer), ("soup", soup))
        drawn += [(f"{label}, {what}", list(arm.values(MEASURES["corrupted"][0]).values())) for what, arm in arms]
        found.append(f"{label}: told apart from one model in {', '.join(moved) or 'no measure'}.")
        parts.append(f"## {label}, {count(soup.rows)} seeds\n\n{table(columns, body)}")
    text = f"""# What else the soup moves: calibration, worst class, corruptions

Digits; a soup of three forked at the default 0.2, beside one model and one trained three times as long. *Corrupted* is
the mean accuracy over sixteen kinds of corruption at five severities. For NLL, ECE and Brier less is better.

{READ}
"""
    text += "\n".join(parts) + f"\n![Accuracy under corruptions]({name}-corrupted.svg)\n"
    return Page(text, {"corrupted": bars(drawn, "mean test accuracy under corruptions, %")}, found)


def apart(name: str, every: Rows) -> Page:
    """Averaging at every pruning step against averaging once."""
    rows, body, found, drawn = every[name], [], [], []
    for sparsity in sorted({row["sparsity"] for row in select(rows, part="2-apart")}):
        averaged = Arm("", select(rows, part="3-averaged", sparsity=sparsity))
        soup = Arm("", select(every.get("digits-robust", []), part="2-soup", sparsity=sparsity)).values(ACCURACY)
        alone: dict[int, list[float]] = {}
        for row in select(rows, part="2-apart", sparsity=sparsity):
            alone.setdefault(int(str(row["model.init"]).rpartition("=")[2]), []).append(row[ACCURACY])
        means = {seed: sum(values) / len(values) for seed, values in alone.items() if values}
        ours = averaged.values(ACCURACY)
        arms = {"one of the three": means, "averaged once": ours, "averaged at every step": soup}
        drawn += [(f"{100 * sparsity:g} %, {what}", list(values.values())) for what, values in arms.items()]
        found.append(f"{100 * sparsity:g} %: averaging at every step over averaging once {against(soup, ours)}.")
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
{table(columns, body)}
![Accuracy of a model pruned alone, of the mean of three, and of the soup]({name}-once.svg)
"""
    return Page(text, {"once": bars(drawn, "test accuracy, %")}, found)


def methods(name: str, every: Rows) -> Page:
    """All methods, alone, as a soup, and alone with three times the compute."""
    rows, body, drawn = every[name], [], []
    means: list[list[float]] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        arms = [Arm(label, select(rows, method=method, **wanted)) for label, wanted in METHOD_ARMS.items()]
        if not all(arm.rows for arm in arms):
            continue
        one, soup, *larger = (arm.values(ACCURACY) for arm in arms)
        others = [one, *larger, *(arms[1].values(key) for key in CANDIDATES)]
        cells = [mean(list(values.values())) for values in (one, *larger, soup)]
        body.append([f"`{method}`", count(arms[1].rows), *cells, *(against(soup, other) for other in others)])
        means.append([sum(a.values()) / len(a) for a in (soup, *others)])
        drawn += [(f"{method}{arm.name}", list(arm.values(ACCURACY).values())) for arm in arms]
    alone = ["one model", "3 times as long", "3 times the batch"]
    over = [*alone, "mean candidate", "ensemble", "best candidate"]
    said = []
    if means:
        middle, *others = (dict(enumerate(column)) for column in zip(*means, strict=True))
        pooled = [against(middle, other) for other in others]
        shown = [mean(list(values.values())) for values in (*others[:3], middle)]
        body.append(["all, a mean each", "", *shown, *pooled])
        gains = ", ".join(f"over {other} {gain}" for other, gain in zip(over, pooled, strict=True))
        said.append(f"Over {len(means)} methods, a mean each: {gains}.")
    columns = ["method", "seeds", *alone, "soup of three", *(f"soup − {other}" for other in over)]
    text = f"""# Other methods

95 % on digits, uniform soups of three forked at 0.2, defaults otherwise; beside them one model trained three times as
long, and one with three times the batch for as many steps. Three seeds say little of any one method. The last line
takes each method's means as one observation; methods share their seeds, so that its p is rather too small.

{READ}
{table(columns, body)}
![Accuracy of each method, alone and as a soup]({name}-methods.svg)
"""
    return Page(text, {"methods": bars(drawn, "test accuracy, %")}, said)


METHOD_ARMS: dict[str, Row] = {
    "": {"part": "1-methods", "merge": "none"},
    " soup": {"part": "1-methods", "merge": "uniform"},
    ", 3 times as long": {"part": "2-longer"},
    ", 3 times the batch": {"part": "3-batch3"},
}
