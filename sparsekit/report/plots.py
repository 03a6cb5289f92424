"""The charts of one run's training and merges; None where a run has no data for one."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from sparsekit.display.text import is_share, percent, score_number
from sparsekit.report.runs import Run
from sparsekit.report.svg import GRID, INK, MARKERS, PALETTE, Chart, Plot, draw, legend

BLUE, RED, GREEN, PINK = PALETTE[:4]
POINTS = 500
"""Learning rates that are drawn at most: more look the same, and make the page large."""


def progress(run: Run) -> Chart | None:
    """Score and sparsity over the budget."""
    merges, score, scale = run.rows["merge"], run.score, scale_of(run.score)
    tested = [(row["epoch"], scale * row[f"test.{score}"]) for row in run.rows["evaluate"]]
    pruned = [(row["epoch"], 100 * row["sparsity"]) for row in run.rows["segment"]]
    if not merges and not tested:
        return None
    soups = [(row["epoch"], scale * row["soup"], row.get("soup.lost", False)) for row in merges]
    with Plot(2.3, 1.2) as plot:
        top, low = plot.panels
        top.grid(axis="x", visible=False)
        for row in merges:
            top.axvline(row["epoch"], color=GRID, linewidth=0.8, zorder=0)
        spots = [(row["epoch"], scale * each) for row in run.contests for each in row["candidates"]]
        draw(top, spots, "o", color=RED, alpha=0.75, markersize=3.5, label="candidates")
        draw(top, [(epoch, soup) for epoch, soup, _ in soups], "-s", color=BLUE, label="soup")
        lost = [(epoch, soup) for epoch, soup, lost in soups if lost]
        draw(top, lost, "x", color=INK, markersize=8, markeredgewidth=1.6, label="lost")
        draw(top, tested, "--", color=GREEN, linewidth=1.2, label="test split")
        top.set_ylabel(axis_of(score))
        legend(top, 4)
        if pruned:
            end = max((epoch for epoch, _ in tested), default=0.0)
            draw(low, [*pruned, (max(end, pruned[-1][0]), pruned[-1][1])], "-", drawstyle="steps-post", color=BLUE)
        low.set_ylim(0, 100)
        low.set_ylabel("sparsity, %")
        low.set_xlabel(run.unit)
        svg = plot.svg(f"{heading(score)} and sparsity over the budget")
    data = [
        (
            f"{r['epoch']:.4g}",
            *(score_number(score, r[key], 2) for key in ("soup", "mean", "best")),
            str(len(r["candidates"])),
        )
        for r in merges
    ]
    head = ("epoch", "soup", "mean candidate", "best candidate", "candidates")
    note = f"Held-out {score} at every merge (vertical lines), and test {score} after it."
    return Chart(f"{heading(score)} and sparsity over time.", svg, head, data, note)


def soup(run: Run) -> Chart | None:
    """The soup, the mean candidate and the ensemble, as distances from the best candidate."""
    rows = run.contests
    if not rows:
        return None
    score, scale, ensemble = run.score, scale_of(run.score), f"ensemble.{run.score}"
    series = (("soup", BLUE, "s", "soup"), ("mean candidate", RED, "o", "mean"), ("ensemble", GREEN, "^", ensemble))
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        for name, colour, marker, key in series:
            line = [(r["segment"] + 1, scale * (r[key] - r["best"])) for r in rows if r.get(key) is not None]
            draw(panel, line, f"-{marker}", color=colour, label=name)
        panel.axhline(0.0, color=INK, linewidth=0.8)
        panel.axhline(-scale * rows[-1]["soup.margin"], color=PINK, linewidth=1.0, linestyle=":", label="margin")
        panel.set_xticks(_ticks(run))
        panel.set_xlabel("merge after segment")
        panel.set_ylabel(f"{'points' if is_share(score) else score} above best candidate")
        legend(panel, 4)
        svg = plot.svg("Soup against its candidates")
    data = [
        (
            str(row["segment"] + 1),
            points(score, row["soup"], row["mean"]),
            points(score, row["soup"], row["best"]),
            points(score, row.get(ensemble), row["best"]),
            "yes" if row["soup.lost"] else "no",
        )
        for row in rows
    ]
    head = ("segment", "soup − mean", "soup − best", "ensemble − best", "lost")
    note = f"Difference in held-out {score} from the best candidate{', in percentage points' * is_share(score)}."
    return Chart("Did the soup help?", svg, head, data, note)


def geometry(run: Run) -> Chart | None:
    """The loss barrier, and the distances and angles between candidates."""
    rows = [row for row in run.contests if row["barrier"] is not None]
    if not rows:
        return None
    barrier = "barrier, nats" if run.score == "accuracy" else "barrier"  # the loss of other tasks may be of any unit
    angles = [(row["segment"] + 1, row["turn.mean"]) for row in rows if row.get("turn.mean") is not None]
    with Plot(*((1.7, 1.7) if angles else (3.0,))) as plot:
        top = plot.panels[0]
        draw(top, [(row["segment"] + 1, row["barrier"]) for row in rows], "-s", color=BLUE)
        top.axhline(0.0, color=INK, linewidth=0.8)
        top.set_ylabel(barrier)
        if angles:
            draw(plot.panels[1], angles, "-o", color=RED)
            plot.panels[1].set_ylabel("angle, °")
        plot.panels[-1].set_xlabel("merge after segment")
        plot.panels[-1].set_xticks(_ticks(run))
        svg = plot.svg("Loss barrier, and angle between the candidates' changes")
    keys = ("barrier", "distance.mean", "turn.mean", "barycentre.mean")
    data = [(str(row["segment"] + 1), *(plain(row.get(key)) for key in keys)) for row in rows]
    head = ("segment", barrier, "L2 distance", "angle of changes, °", "to the barycentre")
    note = "The soup’s loss less the candidates’ mean loss; mean angle between the changes of pairs of candidates."
    return Chart("Barrier and distance.", svg, head, data, note)


def rates(run: Run) -> Chart | None:
    """The planned learning rate, and the one that the first replica used."""
    used = [(row["epoch"], row["lr"]) for row in run.rows["train"] if row["replica"] == 0]
    if not used:
        return None
    used = used[:: -(-len(used) // POINTS)]
    planned = run.segments if run.paced else ()
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        panel.grid(axis="x", visible=False)
        for row in planned:
            low, high = zip(*row["lr_points"], strict=True)
            width = row["epochs"] / (len(low) - 1)
            epochs = [row["start_epoch"] + n * width for n in range(len(low))]
            panel.axvline(row["start_epoch"], color=GRID, linewidth=0.8, zorder=0)
            panel.fill_between(epochs, low, high, color=RED, alpha=0.2, linewidth=0.0)
            panel.plot(epochs, high, color=RED, label="planned" if row is planned[0] else None)
        draw(panel, used, "o", color=BLUE, markersize=3.0, label="used by replica 1")
        panel.set_ylim(bottom=0.0)
        panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        panel.set_ylabel("learning rate")
        panel.set_xlabel(run.unit)
        legend(panel)
        svg = plot.svg("Learning rate")
    data = [(f"{epoch:.4g}", f"{lr:.4g}") for epoch, lr in used[:200]]
    note = "Dots: used by the first replica."
    if planned:
        note += " Line: the plan, a band where it depends on the weights. Vertical lines: starts of segments."
    return Chart("Learning rate.", svg, ("epoch", "rate"), data, note)


def _shares(names: Sequence[str], values: Sequence[float], label: str, each: str, alt: str) -> Markup:
    """A bar of 0 to 100 % for each layer by name; where there are many, a line over their numbers."""
    few = len(names) <= 40
    with Plot(max(3.0, 0.5 + 0.17 * len(names)) if few else 3.0) as plot:
        (panel,) = plot.panels
        if few:
            panel.barh(names, values, color=BLUE, height=0.7)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", labelsize=7.5)
            panel.set_xlim(0, 100)
            panel.set_xlabel(label)
        else:
            panel.step(range(1, len(names) + 1), values, where="mid", color=BLUE)
            panel.set_ylim(0, 100)
            panel.set_xlabel(f"{each}, from input to output")
            panel.set_ylabel(label)
        return plot.svg(alt)


def layers(run: Run) -> Chart | None:
    """The sparsity of each layer after the last pruning."""
    if not run.rows["segment"]:
        return None
    found = run.rows["segment"][-1]["layers"]
    names, values = [name.removesuffix(".weight") for name in found], [100 * value for value in found.values()]
    svg = _shares(names, values, "sparsity, %", "layer", "Sparsity of each layer")
    data = [(name, percent(value, 2)) for name, value in zip(names, found.values(), strict=True)]
    return Chart("Where the sparsity went.", svg, ("layer", "sparsity"), data)


def channels(run: Run) -> Chart | None:
    """The channels that each group of coupled layers has left after the last pruning; None of other patterns."""
    last = run.rows["segment"][-1] if run.rows["segment"] else {}
    if "channels" not in last:
        return None
    left, whole = last["channels"], last["channels.of"]
    shares = [100 * left[name] / whole[name] for name in whole]
    what = "Channels left of each group of coupled layers"
    svg = _shares(list(whole), shares, "channels left, %", "group of coupled layers", what)
    data = [(name, f"{left[name]:,} of {whole[name]:,}") for name in whole]
    note = "A group is named after its first layer; heads count as their channels."
    return Chart("Channels left.", svg, ("group", "channels"), data, note)


def removed(run: Run) -> Chart | None:
    """Weights, parameters and operations that removed channels had, along the run; None of other patterns."""
    found = [row for row in run.rows["segment"] if "channels" in row]
    if not found:
        return None
    keys = ("weights", "parameters", "flops")
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        for key, colour, marker in zip(keys, PALETTE, MARKERS, strict=False):
            shares = [100 * (1 - row[f"removed.{key}"]) for row in found]
            panel.step(
                [row["segment"] + 1 for row in found], shares, where="post", color=colour, marker=marker, label=key
            )
        panel.set_ylim(0, 105)
        panel.set_xlabel("segment")
        panel.set_ylabel("left without the channels, %")
        legend(panel)
        svg = plot.svg("What is left without the removed channels")
    data = [(str(row["segment"] + 1), *(percent(1 - row[f"removed.{key}"], 2) for key in keys)) for row in found]
    return Chart("What channels save.", svg, ("segment", *keys), data)


def scale_of(score: str) -> float:
    """What a score is multiplied with where it is drawn."""
    return 100.0 if is_share(score) else 1.0


def axis_of(score: str) -> str:
    """The label of an axis of scores."""
    return f"{score}, %" if is_share(score) else score


def heading(score: str) -> str:
    """A score's name at the start of a title: a plain word gets a capital letter."""
    return score.capitalize() if score.isalpha() and score.islower() else score


def points(score: str, value: float | None, other: float) -> str:
    """A difference of two scores, of accuracies in percentage points; a dash without the first."""
    if value is None or not isfinite(value - other):
        return "–"
    return f"{scale_of(score) * (value - other):+.{2 if is_share(score) else 4}f}".replace("-", "−")


def plain(value: float | None) -> str:
    """A number of any size; a dash without one."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _ticks(run: Run) -> list[int]:
    """The numbers of the segments with a contest, about a dozen at most."""
    numbers = [row["segment"] + 1 for row in run.contests]
    return numbers[:: max(1, len(numbers) // 12)]
