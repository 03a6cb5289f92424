"""How early it pays to fork: the page of forks along a schedule, and the one of late soups against longer training."""

from __future__ import annotations

from collections.abc import Sequence

from study_page import Page
from study_plots import lines
from study_soups import arms_of
from study_tables import Arm, Row, Rows, mean, part, select, sparsities

FACTS = {
    "learning rate there": lambda arm: (
        "…".join(dict.fromkeys(f"{rate:.3g}" for rate in arm.rows[0].get("first.lr", []))) or "–"
    ),
    "barrier of the first merge": lambda arm: mean(arm.values("first.barrier"), 3),
    "angle of its replicas' ways, °": lambda arm: mean(arm.values("first.turn.mean"), 0),
    "barrier of the last": lambda arm: mean(arm.values("last.barrier"), 3),
}
TOLD = {
    "GMP": """\
The learning rate falls all the while (cosine), and no restart brings it back. At 0, replicas part from random weights
while the rate warms up; the last plot leaves them out.
""",
    "BIMP": """\
The learning rate restarts with each segment, at what the method makes of the last pruning; the plan has its range.
These soups are of two other studies, [digits-bimp](digits-bimp.md) and [digits-vary](digits-vary.md).
""",
}


def fork(name: str, every: Rows) -> Page:
    """Barrier and gain by the fraction of the budget before the fork, and by the learning rate there."""
    page = Page(
        name,
        "How early it pays to fork",
        """\
Digits, 95 %, uniform soups of three. A fork at 0.3 means that one model trains alone for the first 30 % of the budget.
The barrier is loss(soup) − mean loss of its candidates, held out: below 0 where averaging helps at once. One model
trained three times as long, or with three times the batch, sees 36,000 images.
""",
    )
    accuracies, gains = dict[str, list[Point]](), dict[str, list[Point]]()
    methods = {"GMP": gmp(every[name]), "BIMP": bimp(every)}
    for method, forks in methods.items():
        of_method = select(every.get(f"digits-{method.lower()}", []), sparsity=0.95)
        others = arms_of(of_method).baselines()
        pairs = [(arm, others | arm.candidates()) for arm in forks.values()]
        page.section(method, [*others.values(), *forks.values()], pairs, facts=FACTS, intro=TOLD[method], drawn="")
        for start, arm in forks.items():
            ours, theirs = (each.reached("accuracy") for each in (arm, *arm.candidates("mean").values()))
            accuracies.setdefault(method, []).append((start, list(ours.values())))
            gains.setdefault(method, []).append((start, [ours[seed] - theirs[seed] for seed in ours]))
    barriers = [
        (arm.rows[0]["first.lr"][0], [-value for value in arm.values("first.barrier").values()])
        for start, arm in methods["GMP"].items()
        if start > 0
    ]
    before = "fraction of the budget before the fork"
    for ending, alt, curves, across, up in (
        ("start", f"Accuracy by the {before}", accuracies, before, "test accuracy, %"),
        ("gain", "Gain over the mean candidate", gains, before, "points over the mean candidate"),
        (
            "rate",
            "GMP: what the first merge gains, by the learning rate at the fork",
            {"GMP": barriers},
            "learning rate at the fork",
            "− barrier of the first merge, nats",
        ),
    ):
        page.plot(ending, alt, lines(curves, across, up))
    return page


Point = tuple[float, list[float]]
"""Where, and the values there."""


def gmp(rows: Sequence[Row]) -> dict[float, Arm]:
    """Soups by fork."""
    starts = sorted({row["replicas.start"] for row in rows})
    return {start: Arm(f"forked at {start:g}", select(rows, replicas__start=start)) for start in starts}


def bimp(every: Rows) -> dict[float, Arm]:
    """Soups by fork: `--replicas.start` counts from the next segment on, and BIMP has four at 30 epochs."""
    soups = select(part(every.get("digits-bimp", []), "soups"), merge="uniform", replicas__count=3, sparsity=0.95)
    forks = {fork: select(soups, replicas__start=start) for fork, start in ((0.0, 0.0), (0.53, 0.5), (0.77, 0.7))}
    forks[0.3] = select(part(every.get("digits-vary", []), "bimp"), replicas__vary="seed")
    return {fork: Arm(f"forked at {fork:g}", forks[fork]) for fork in sorted(forks) if forks[fork]}


LATE = {56: 90, 94: 150}
"""Epochs of one model that see as many images as a run of so many epochs with three replicas in its last segment."""


def late(name: str, every: Rows) -> Page:
    """Soups of the last segment alone, at the compute of one model trained longer."""
    page = Page(
        name,
        "A late soup against longer training, at the same compute",
        """\
GMP on digits. The budget of one model that trains for 90 or 150 epochs goes into a shorter run instead, whose last
segment (30 % of it) trains three replicas and ends in their uniform soup. They differ in batch order and augmentation
(`seed`), or in learning rate too (`lr`, half to twice the base value).
""",
    )
    for label, at in sparsities(every[name]).items():
        beside, arms, pairs = part(every.get("digits-gmp", []), "longer"), list[Arm](), []
        for epochs, longer in LATE.items():
            plain = Arm(f"one model, {longer} epochs", select(beside, sparsity=at[0]["sparsity"], epochs=longer))
            soups = [
                Arm(f"soup of 3, `{axis}`, {epochs} epochs", select(at, epochs=epochs, replicas__vary=axis))
                for axis in ("seed", "lr")
            ]
            arms += [plain, *soups]
            pairs += [(soup, {"one model of as many images": plain, **soup.candidates()}) for soup in soups]
        page.section(label, arms, pairs)
    return page
