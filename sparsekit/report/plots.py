"""The plots of one run and its merges, each a figure with its data; None where a run has nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from sparsekit.display.text import percent
from sparsekit.report.html import Html, Table, figure
from sparsekit.report.runs import Run, number, numbers
from sparsekit.report.svg import GRID, INK, PALETTE, Plot, legend

BLUE, RED, GREEN, PINK = PALETTE[:4]
POINTS = 500
"""Learning rates that are drawn at most: more look the same, and make the page large."""


def merges(run: Run) -> list[dict[str, Any]]:
    """Every merge: where it was, what the candidates, the soup and their ensemble reached on the held-out images."""
    found = []
    for row in run.events("merge"):
        soup, candidates = number(row.get("soup")), numbers(row.get("candidates"))
        if soup is None or not candidates:
            continue
        keys = ("barrier", "ensemble.accuracy", "distance.mean", "turn.mean", "barycentre.mean")
        measured: dict[str, Any] = {key: number(row.get(key)) for key in keys}
        found.append(
            measured
            | {
                "segment": int(number(row.get("segment")) or 0) + 1,
                "epoch": run.epochs(row["step"]),
                "candidates": candidates,
                "mean": sum(candidates) / len(candidates),
                "best": max(candidates),
                "soup": soup,
                "used": len(numbers(row.get("ingredients"))),
                "lost": row.get("soup.lost") is True,
                "margin": number(row.get("soup.margin")),
            }
        )
    return found


def progress(run: Run) -> Html | None:
    """Accuracy and sparsity over the budget."""
    rows = merges(run)
    tested = [
        (run.epochs(row["step"]), a)
        for row in run.events("evaluate")
        if (a := number(row.get("test.accuracy"))) is not None
    ]
    pruned = [
        (run.epochs(row["step"]), s) for row in run.events("segment") if (s := number(row.get("sparsity"))) is not None
    ]
    if not rows and not tested:
        return None
    with Plot(2.3, 1.2) as plot:
        top, low = plot.panels
        top.grid(axis="x", visible=False)
        for row in rows:
            top.axvline(row["epoch"], color=GRID, linewidth=0.8, zorder=0)
        spots = [(row["epoch"], 100 * a) for row in rows if len(row["candidates"]) > 1 for a in row["candidates"]]
        if spots:
            top.plot(*zip(*spots, strict=True), "o", color=RED, alpha=0.75, markersize=3.5, label="candidates")
        if rows:
            line = [(row["epoch"], 100 * row["soup"]) for row in rows]
            top.plot(*zip(*line, strict=True), "-s", color=BLUE, label="soup")
        if lost := [(row["epoch"], 100 * row["soup"]) for row in rows if row["lost"]]:
            top.plot(*zip(*lost, strict=True), "x", color=INK, markersize=8, markeredgewidth=1.6, label="lost")
        if tested:
            line = [(epoch, 100 * a) for epoch, a in tested]
            top.plot(*zip(*line, strict=True), "--", color=GREEN, linewidth=1.2, label="test split")
        top.set_ylabel("accuracy, %")
        legend(top, 4)
        if pruned:
            end = max((epoch for epoch, _ in tested), default=0.0)
            line = [(epoch, 100 * s) for epoch, s in [*pruned, (max(end, pruned[-1][0]), pruned[-1][1])]]
            low.step(*zip(*line, strict=True), where="post", color=BLUE)
        low.set_ylim(0, 100)
        low.set_ylabel("sparsity, %")
        low.set_xlabel("epochs" if run.segments() else "optimizer steps")
        svg = plot.svg("Accuracy and sparsity over the budget")
    head = ("epoch", "soup", "mean candidate", "best candidate", "candidates")
    data = [
        (
            f"{r['epoch']:.4g}",
            percent(r["soup"], 2),
            percent(r["mean"], 2),
            percent(r["best"], 2),
            str(len(r["candidates"])),
        )
        for r in rows
    ]
    note = "Held-out accuracy at every merge (a vertical line each), and the test split’s after it."
    return figure("Accuracy and sparsity over time.", svg, Table(head, data), note)


def soup(run: Run) -> Html | None:
    """The soup, the mean candidate and the ensemble, as distances from the best candidate."""
    rows = [row for row in merges(run) if len(row["candidates"]) > 1]
    if not rows:
        return None
    series: list[tuple[str, str, str, Callable[[dict[str, Any]], float | None]]] = [
        ("soup", BLUE, "s", lambda row: row["soup"]),
        ("mean candidate", RED, "o", lambda row: row["mean"]),
        ("ensemble", GREEN, "^", lambda row: row["ensemble.accuracy"]),
    ]
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        for name, colour, marker, value in series:
            line = [(row["segment"], 100 * (v - row["best"])) for row in rows if (v := value(row)) is not None]
            if line:
                panel.plot(*zip(*line, strict=True), marker=marker, color=colour, label=name)
        panel.axhline(0.0, color=INK, linewidth=0.8)
        margin = rows[-1]["margin"]
        if margin is not None:
            panel.axhline(-100 * margin, color=PINK, linewidth=1.0, linestyle=":", label="margin")
        panel.set_xticks([row["segment"] for row in rows][:: max(1, len(rows) // 12)])
        panel.set_xlabel("merge after segment")
        panel.set_ylabel("points above best candidate")
        legend(panel, 4)
        svg = plot.svg("Soup against its candidates")
    head = ("segment", "soup − mean", "soup − best", "ensemble − best", "lost")
    data = [
        (
            str(row["segment"]),
            points(row["soup"] - row["mean"]),
            points(row["soup"] - row["best"]),
            points(None if row["ensemble.accuracy"] is None else row["ensemble.accuracy"] - row["best"]),
            "yes" if row["lost"] else "no",
        )
        for row in rows
    ]
    note = "Held-out accuracy in points from the best candidate’s, which is the zero line."
    return figure("Did the soup help?", svg, Table(head, data), note)


def geometry(run: Run) -> Html | None:
    """The barrier, and how far apart the candidates were."""
    rows = [row for row in merges(run) if len(row["candidates"]) > 1 and row["barrier"] is not None]
    if not rows:
        return None
    apart = [(row["segment"], row["turn.mean"]) for row in rows if row["turn.mean"] is not None]
    with Plot(*((1.7, 1.7) if apart else (3.0,))) as plot:
        top = plot.panels[0]
        top.plot([row["segment"] for row in rows], [row["barrier"] for row in rows], "-s", color=BLUE)
        top.axhline(0.0, color=INK, linewidth=0.8)
        top.set_ylabel("barrier, nats")
        if apart:
            plot.panels[1].plot(*zip(*apart, strict=True), "-o", color=RED)
            plot.panels[1].set_ylabel("angle, °")
        plot.panels[-1].set_xlabel("merge after segment")
        plot.panels[-1].set_xticks([row["segment"] for row in rows][:: max(1, len(rows) // 12)])
        svg = plot.svg("Interpolation barrier, and angle between the candidates' changes")
    head = ("segment", "barrier, nats", "L2 distance", "angle of changes, °", "to the barycentre")
    keys = ("barrier", "distance.mean", "turn.mean", "barycentre.mean")
    data = [(str(row["segment"]), *(plain(row[key]) for key in keys)) for row in rows]
    note = "Loss of the soup less the candidates’ mean; mean angle between what each pair of candidates learnt."
    return figure("Barrier and distance.", svg, Table(head, data), note)


def rates(run: Run) -> Html | None:
    """The planned learning rate against what was used."""
    used = [
        (run.epochs(row["step"]), lr)
        for row in run.events("train")
        if row.get("replica", 0) == 0 and (lr := number(row.get("lr"))) is not None
    ]
    planned = []
    for row in run.segments():
        pairs = [pair for point in row.get("lr_points") or [] if len(pair := numbers(point)) == 2]
        if pairs and row["epochs"] > 0:
            width = row["epochs"] / max(len(pairs) - 1, 1)
            planned.append([(row["start_epoch"] + i * width, *pair) for i, pair in enumerate(pairs)])
    if not used:
        return None
    used = used[:: -(-len(used) // POINTS)]
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        panel.grid(axis="x", visible=False)
        for row in run.segments():
            panel.axvline(row["start_epoch"], color=GRID, linewidth=0.8, zorder=0)
        for i, line in enumerate(planned):
            epochs, low, high = zip(*line, strict=True)
            panel.fill_between(epochs, low, high, color=RED, alpha=0.2, linewidth=0.0)
            panel.plot(epochs, high, color=RED, label="planned" if i == 0 else None)
        panel.plot(*zip(*used, strict=True), "o", color=BLUE, markersize=3.0, label="used by replica 1")
        panel.set_ylim(bottom=0.0)
        panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        panel.set_ylabel("learning rate")
        panel.set_xlabel("epochs")
        legend(panel)
        svg = plot.svg("Learning rate")
    return figure(
        "Learning rate.", svg, Table(("epoch", "rate"), [(f"{e:.4g}", f"{lr:.4g}") for e, lr in used[:200]]),
        "A vertical line where a segment starts; what the first replica used"
        + (", and the plan: a band where it depends on the weights." if planned else "."),
    )  # fmt: skip


def layers(run: Run) -> Html | None:
    """Sparsity a layer after the last pruning."""
    found: Mapping[str, Any] = {}
    for row in run.events("segment"):
        if isinstance(row.get("layers"), dict):
            found = row["layers"]
    values = [(str(name).removesuffix(".weight"), v) for name, raw in found.items() if (v := number(raw)) is not None]
    if not values:
        return None
    few = len(values) <= 40
    with Plot(max(3.0, 0.5 + 0.17 * len(values)) if few else 3.0) as plot:
        (panel,) = plot.panels
        shares = [100 * v for _, v in values]
        if few:
            panel.barh([name for name, _ in values], shares, color=BLUE, height=0.7)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", labelsize=7.5)
            panel.set_xlim(0, 100)
            panel.set_xlabel("sparsity, %")
        else:
            panel.step(range(1, len(values) + 1), shares, where="mid", color=BLUE)
            panel.set_ylim(0, 100)
            panel.set_xlabel("layer, from input to output")
            panel.set_ylabel("sparsity, %")
        svg = plot.svg("Sparsity of each layer")
    return figure(
        "Where the sparsity went.", svg, Table(("layer", "sparsity"), [(n, percent(v, 2)) for n, v in values])
    )


def points(value: float | None) -> str:
    """A difference of shares in points."""
    return "–" if value is None else f"{100 * value:+.2f}".replace("-", "−")


def plain(value: float | None) -> str:
    """A number of any size."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")
