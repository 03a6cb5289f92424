"""The sections about one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.filesize import decimal

from sparsekit.display.text import duration, percent
from sparsekit.report import plots, tested
from sparsekit.report.html import Html, Table, element, join, pairs, table
from sparsekit.report.runs import Run, number

NOTE = (
    "Sparse figures are theoretical: unstructured zeros do not speed up dense kernels. The model runs as slowly, and "
    "is as large on disk, as a dense one."
)
STATUSES = ("done", "stopped", "failed", "unfinished")


def sections(run: Run, level: str = "h2") -> Html:
    """All about one run, without its heading."""
    figures = [guarded(part, run) for part in (plots.progress, plots.soup, plots.geometry, plots.layers)]
    measured = [guarded(part, run) for part in (tested.calibration, tested.classes, tested.heat_maps)]
    parts: list[Html | None] = [guarded(summary, run)]
    for title, content in (
        ("What happened", _figures(figures)),
        ("Plan against what happened", _both(guarded(planned, run), _figures([guarded(plots.rates, run)]))),
        ("On the test images", _both(guarded(_numbers, run), _figures(measured))),
        ("Cost", guarded(cost, run)),
        ("Configuration", guarded(configuration, run)),
    ):
        if content:
            parts.append(element("section", element(level, title), content))
    return join(part for part in parts if part)


def guarded(part: Callable[[Run], Html | None], run: Run) -> Html | None:
    """A part of the page, or a line in its place: files of another version may hold anything."""
    try:
        return part(run)
    except Exception as error:
        name = part.__name__.strip("_").replace("_", " ")
        return element("p", f"The part “{name}” cannot be made of these files ({type(error).__name__}).", class_="lost")


def about(run: Run) -> str:
    """Method, merge, data and seed, as far as they are known."""
    parts = [" + ".join(str(run.config[key]) for key in ("method", "merge") if key in run.config)]
    parts += [f"on {run.config['data.name']}"] if "data.name" in run.config else []
    parts += [f"seed {run.config['seed']}"] if "seed" in run.config else []
    return ", ".join(part for part in parts if part)


def badge(run: Run) -> Html:
    """The run's status."""
    return element("span", run.status, class_=f"badge {run.status if run.status in STATUSES else 'other'}")


def summary(run: Run) -> Html:
    """A sentence, what is wrong, and the main numbers."""
    parts = [element("p", verdict(run), class_="verdict")]
    parts += (
        [element("p", "Not everything could be read: ", "; ".join(run.problems), ".", class_="lost")]
        if run.problems
        else []
    )
    cards = []

    def card(name: str, text: str, key: str) -> None:
        cards.append(element("div", element("span", name), element("b", text, data_key=key), class_="card"))

    shares = [
        ("test accuracy", "test.accuracy"),
        ("sparsity, prunable", "sparsity"),
        ("sparsity, all weights", "model_sparsity"),
        ("mean candidate, test", "candidates.mean_accuracy"),
        ("best candidate, test", "candidates.best_accuracy"),
        ("worst class", "test.worst_class_accuracy"),
    ]
    alone = run.number("candidates.count") == 1
    for name, key in shares:
        if (value := run.number(key)) is not None and not (alone and key.startswith("candidates")):
            card(name, percent(value, 2), key)
    for name, key in (("NLL, test", "test.loss"), ("ECE, test", "test.ece")):
        if (value := run.number(key)) is not None:
            card(name, f"{value:.4f}", key)
    if (value := run.number("nonzero")) is not None:
        card("nonzero parameters", f"{value:,.0f}", "nonzero")
    if (value := run.number("wall_seconds")) is not None:
        card("time", duration(value), "wall_seconds")
    parts += [element("div", *cards, class_="cards")] if cards else []
    return join(parts)


def verdict(run: Run) -> Html:
    """Whether the soup helped, in a sentence or two."""
    accuracy, sparsity = run.number("test.accuracy"), run.number("sparsity")
    mean, best = run.number("candidates.mean_accuracy"), run.number("candidates.best_accuracy")
    if not run.done:
        merged = len(run.events("merge"))
        told = f"This run is {run.status}: {merged} of {len(run.segments()) or '?'} segments are finished."
        return join([told, " What follows is what it left."])
    if accuracy is None or sparsity is None:
        return join(["This run is done, but its summary lacks the result."])
    text = (
        f"{percent(accuracy, 2)} of the test images are told right with {percent(sparsity, 2)} of the prunable weights "
    )
    text += "gone."
    if mean is not None and best is not None and run.number("candidates.count") != 1:
        text += f" At the last merge the soup lies {_apart(accuracy - mean)} its mean candidate"
        text += f" and {_apart(accuracy - best)} its best."
    parts: list[object] = [text.replace(" %", "\N{NO-BREAK SPACE}%")]
    rows = [row for row in plots.merges(run) if len(row["candidates"]) > 1 and row["margin"] is not None]
    lost = [str(row["segment"]) for row in rows if row["lost"]]
    if rows:
        margin = 100 * rows[-1]["margin"]
        told = f"more than {margin:g} point{'s' * (margin != 1)} against the best candidate, held out"
        if lost:
            said = f" {len(lost)} of {len(rows)} merges lost {told} (after segment {', '.join(lost)})."
            parts.append(element("span", said, class_="lost"))
        else:
            parts.append(f" No merge lost {told}.")
    return join(parts)


def _apart(share: float) -> str:
    return f"{100 * abs(share):.2f} points {'below' if share < 0 else 'above'}"


def planned(run: Run) -> Html | None:
    """The plan's segments beside what they came to."""
    segments = run.segments()
    if not segments:
        return None
    happened = {row.get("segment"): row for row in run.events("segment")}
    merged = {row["segment"]: row for row in plots.merges(run)}
    scored = {row.get("segment"): row for row in run.events("evaluate")}
    rows = []
    for plan in segments:
        index = plan["segment"]
        real, merge = happened.get(index, {}), merged.get(index + 1)
        reached = number(real.get("sparsity"))
        accuracy = number(scored.get(index, {}).get("test.accuracy"))
        several = merge and len(merge["candidates"]) > 1
        used = f"{merge['used']} of {len(merge['candidates'])}" if merge else "–"
        rows.append(
            (
                str(index + 1),
                f"{plan['start_epoch']:.4g} – {plan['start_epoch'] + plan['epochs']:.4g}",
                percent(plan["sparsity"], 2),
                percent(reached, 2) if reached is not None else "not reached",
                str(plan.get("replicas", "–")),
                used,
                percent(merge["soup"], 2) if merge else "–",
                plots.points(merge["soup"] - merge["best"]) if merge and several else "–",
                plots.plain(merge["barrier"]) if merge and several else "–",
                element("span", "lost", class_="lost") if merge and merge["lost"] else "",
                percent(accuracy, 2) if accuracy is not None else "–",
            )
        )
    head = ("segment", "epochs", "planned sparsity", "reached", "replicas", "used", "soup, held out", "− best")
    return table(Table((*head, "barrier", "", "test"), rows))


def cost(run: Run) -> Html | None:
    """Operations, bytes, images and time."""
    n = run.number
    rows: list[tuple[str, object]] = []

    def add(name: str, text: str, *keys: str) -> None:
        values = [n(key) for key in keys]
        if all(value is not None for value in values):
            rows.append((name, element("span", text.format(*values), data_key=keys[0])))

    add("FLOPs an image, dense", "{:,.0f}", "flops.dense")
    dense, sparse = n("flops.dense"), n("flops.sparse")
    if dense and sparse is not None:
        told = f"{sparse:,.0f} ({percent(sparse / dense)} of dense)"
        rows.append(("FLOPs an image, sparse (theoretical)", element("span", told, data_key="flops.sparse")))
    add("parameters", "{:,.0f}", "parameters")
    add("nonzero", "{:,.0f}", "nonzero")
    for name, key in (
        ("size, dense", "bytes.dense"),
        ("size, compressed: nonzeros and a bit a weight", "bytes.compressed"),
        ("size on disk", "bytes.disk"),
    ):
        if (value := n(key)) is not None:
            rows.append((name, element("span", decimal(int(value)), data_key=key)))
    add("training images, all replicas", "{:,.0f}", "images.total")
    add("training images, critical path", "{:,.0f}", "images.critical")
    if (seconds := n("latency.seconds")) is not None:
        rows.append(
            ("measured latency of one image", element("span", f"{1000 * seconds:.3g} ms", data_key="latency.seconds"))
        )
    if (seconds := n("wall_seconds")) is not None:
        rows.append(("time of the run", duration(seconds)))
    if not rows:
        return None
    return join([pairs(rows), element("p", NOTE, class_="dim")])


def configuration(run: Run) -> Html | None:
    """Every option."""
    if not run.config:
        return None
    options = pairs((key, element("code", _option(value))) for key, value in run.config.items())
    return join(
        [
            element("p", "Run directory: ", element("code", str(run.path))),
            element("details", element("summary", f"All {len(run.config)} options"), options),
        ]
    )


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _numbers(run: Run) -> Html | None:
    """Every single number of the test split, a column a variant."""
    from sparsekit.display.tables import NAMES, VARIANTS, cell

    variants = {key: _sound(variant["test"]) for key, variant in run.variants().items()}
    if not variants:
        return None
    rows = [(title, *(cell(key, test) for test in variants.values())) for key, title in NAMES.items()]
    agreement = [number(variant.get("agreement")) for variant in run.variants().values()]
    if any(value is not None for value in agreement):
        cells = tuple("–" if value is None else percent(value, 2) for value in agreement)
        rows.append((f"agrees with {run.evaluation.get('dense', 'the dense model')}", *cells))
    about = run.evaluation.get("data")
    name = about.get("name", "?") if isinstance(about, dict) else "?"
    head = (f"test split of {name}", *(VARIANTS.get(key, key) for key in variants))
    return table(Table(head, [row for row in rows if any(row[1:])]))


def _sound(test: Mapping[str, Any]) -> dict[str, Any]:
    """What `tables.cell` can show of an evaluation that another version may have written."""
    return {key: value for key, value in test.items() if value is None or number(value) is not None} | {
        "worst_class": test.get("worst_class", "?")
    }


def _both(*parts: Html | None) -> Html | None:
    there = [part for part in parts if part]
    return join(there) if there else None


def _figures(found: list[Html | None]) -> Html | None:
    there = [each for each in found if each]
    return element("div", *there, class_="figures") if there else None
