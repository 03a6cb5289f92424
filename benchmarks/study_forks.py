"""How early it pays to fork: the page of forks along a schedule, and the one of late soups against longer training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study_plots import bars, lines
from study_soups import ACCURACY, MEAN, READ, Page, Rows, baselines, count, images, over_candidates
from study_tables import Arm, Row, against, differences, mean, select, table

COLUMNS = (
    "fork at",
    "learning rate there",
    "training images",
    "barrier of the first merge",
    "angle of its replicas' ways",
    "barrier of the last",
    "accuracy",
    "− one model",
    "− one 3 times as long",
    "− one with 3 times the batch",
    "− mean candidate",
    "− ensemble",
    "− best candidate",
)


def fork(name: str, every: Rows) -> Page:
    """Barrier and gain by the fraction of the budget before the fork, and by the learning rate there."""
    methods = {"GMP": gmp(every[name]), "BIMP": bimp(every)}
    parts, found = [], []
    gains, accuracies = dict[str, list[tuple[float, list[float]]]](), dict[str, list[tuple[float, list[float]]]]()
    for method, forks in methods.items():
        alone, body = baselines(every, f"digits-{method.lower()}"), []
        for start, arm in forks.items():
            ours, theirs = arm.values(ACCURACY), arm.values(MEAN)
            over_alone, over_its_own = [against(ours, other) for other in alone], over_candidates(arm)
            gains.setdefault(method, []).append((start, [100 * value for value in differences(ours, theirs)]))
            accuracies.setdefault(method, []).append((start, [100 * value for value in ours.values()]))
            said = f"over one model {over_alone[0]}, over the mean candidate {over_its_own[0]}"
            found.append(f"{method} forked at {start:g}: {said}.")
            body.append(
                [
                    f"{start:g}",
                    rate(arm.rows[0]["first.lr"]),
                    images(arm.rows),
                    mean(list(arm.values("first.barrier").values()), 1.0, 3),
                    mean(list(arm.values("first.turn.mean").values()), 1.0, 0) + "°",
                    mean(list(arm.values("last.barrier").values()), 1.0, 3),
                    mean(list(ours.values())),
                    *over_alone,
                    *over_its_own,
                ]
            )
        parts.append(f"## {method}\n\n{TOLD[method]}\n\n{table(COLUMNS, body)}")
    text = f"""# How early it pays to fork

Digits, 95 %, uniform soups of three, {count(every[name])} seeds. A fork at 0.3 means that one model trains alone for
the first 30 % of the budget. The barrier is loss(soup) − mean loss of its candidates, held out: below 0 where averaging
helps at once. One model trained three times as long, or with three times the batch, sees 36,000 images.

{READ}
"""
    text += (
        "\n".join(parts)
        + f"""
![Accuracy by the fraction of the budget at which replicas fork]({name}-start.svg)
![Gain over the mean candidate]({name}-gain.svg)
![GMP: what the first merge gains, by the learning rate at the fork]({name}-rate.svg)
"""
    )
    before = "fraction of the budget before the fork"
    common = [arm for start, arm in methods["GMP"].items() if start > 0]
    at = [arm.rows[0]["first.lr"][0] for arm in common]
    barriers = [
        (x, [-value for value in arm.values("first.barrier").values()]) for x, arm in zip(at, common, strict=True)
    ]
    plots = {
        "start": lines(accuracies, before, "test accuracy, %"),
        "gain": lines(gains, before, "points over the mean candidate"),
        "rate": lines({"GMP": barriers}, "learning rate at the fork", "− barrier of the first merge, nats"),
    }
    return Page(text, plots, found)


TOLD = {
    "GMP": "The learning rate falls all the while (cosine), and no restart brings it back. At 0, replicas part from "
    "random weights while the rate warms up; the last plot leaves them out.",
    "BIMP": "The learning rate restarts with each segment, at what the method makes of the last pruning; the plan has "
    "its range. These soups are of two other studies, [digits-bimp](digits-bimp.md) and [digits-vary](digits-vary.md).",
}


def gmp(rows: Sequence[Row]) -> Mapping[float, Arm]:
    """Soups by fork."""
    return {
        start: Arm("", select(rows, replicas__start=start)) for start in sorted({r["replicas.start"] for r in rows})
    }


def bimp(every: Rows) -> Mapping[float, Arm]:
    """Soups by fork: `--replicas.start` counts from the next segment on, and BIMP has four at 30 epochs."""
    wanted = {"part": "2-soups", "merge": "uniform", "replicas__count": 3, "sparsity": 0.95}
    soups = {
        fork: select(every.get("digits-bimp", []), replicas__start=start, **wanted)
        for fork, start in ((0.0, 0.0), (0.53, 0.5), (0.77, 0.7))
    }
    soups[0.3] = select(every.get("digits-vary", []), part="2-bimp", replicas__vary="seed")
    return {fork: Arm("", soups[fork]) for fork in sorted(soups) if soups[fork]}


def rate(planned: Sequence[float]) -> str:
    """One number, or what it may be."""
    return "…".join(dict.fromkeys(f"{value:.3g}" for value in planned))


LATE = {56: 90, 94: 150}
"""Epochs of one model that see as many images as a run of so many epochs with three replicas in its last segment."""


def late(name: str, every: Rows) -> Page:
    """Soups of the last segment alone, at the compute of one model trained longer."""
    rows, parts, drawn, found = every[name], [], [], []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        body = []
        for epochs, longer in LATE.items():
            plain = Arm("", select(every.get("digits-gmp", []), part="3-longer", sparsity=sparsity, epochs=longer))
            alone, label = list(plain.values(ACCURACY).values()), f"{100 * sparsity:g} %, "
            body.append([f"one model, {longer} epochs", images(plain.rows), mean(alone), "", "", "", ""])
            drawn.append((f"{label}one model, {longer} epochs", alone))
            for axis in ("seed", "lr"):
                arm = Arm("", select(rows, sparsity=sparsity, epochs=epochs, replicas__vary=axis))
                ours, what = arm.values(ACCURACY), f"soup of 3, `{axis}`, {epochs} epochs"
                gains = [against(ours, plain.values(ACCURACY)), *over_candidates(arm)]
                body.append([what, images(arm.rows), mean(list(ours.values())), *gains])
                drawn.append((label + what.replace("`", ""), list(ours.values())))
                found.append(f"{label}{what}: over one model of {longer} epochs {gains[0]}.")
        columns = [
            "what",
            "training images",
            "accuracy",
            "− one model",
            "− mean candidate",
            "− ensemble",
            "− best candidate",
        ]
        parts += [f"## {100 * sparsity:g} % sparse\n", table(columns, body)]
    text = f"""# A late soup against longer training, at the same compute

GMP on digits, {count(rows)} seeds. The budget of one model that trains for 90 or 150 epochs goes into a shorter run
instead, whose last segment (30 % of it) trains three replicas and ends in their uniform soup. They differ in batch
order and augmentation (`seed`), or in learning rate too (`lr`, half to twice the base value).

{READ}
"""
    text += "\n".join(parts) + f"\n![Accuracy at equal compute]({name}-compute.svg)\n"
    return Page(text, {"compute": bars(drawn, "test accuracy, %")}, found)
