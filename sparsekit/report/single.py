"""What a page shows about one run, as text for the template `run.html.jinja`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.filesize import decimal

from sparsekit.display.tables import cell, empty_layers, margin_text, run_title, titles
from sparsekit.display.text import duration, gain_text, gap_text, is_share, percent, score_number, signed_text
from sparsekit.report import evaluation_charts, plots
from sparsekit.report.runs import Run
from sparsekit.report.svg import Chart

COSTS = {
    "flops.dense": "FLOPs an image, dense",
    "flops.sparse": "FLOPs an image, sparse (theoretical)",
    "prunable": "prunable weights",
    "parameters": "parameters",
    "nonzero": "nonzero",
    "bytes.dense": "size, dense",
    "bytes.compressed": "size, compressed: nonzeros and a bit a weight",
    "bytes.disk": "size on disk",
    "images.total": "training images, all replicas",
    "images.critical": "training images, critical path",
    "latency.seconds": "measured latency of one image",
    "latency.slim_seconds": "measured latency of one image, without the removed channels",
    "wall_seconds": "time of the run",
}
PLANNED = ("segment", "epochs", "planned sparsity", "reached", "replicas", "used", "soup, held out", "− best",
           "barrier", "", "test")  # fmt: skip
_LOST = Markup('<span class="lost">lost</span>')


def view(run: Run) -> dict[str, Any]:
    """Everything that the template shows: text, tables as their head and rows, and charts."""
    return {
        "run": run,
        "badge": badge(run),
        "title": run_title(run.config["method"], run.config["merge"], run.summary.get("merged")),
        "empty": empty_layers(empty) if (empty := run.summary.get("layers.empty")) else "",
        "verdict": verdict(run) if run.done else [],
        "gains": gains(run) if run.done else [],
        "margin": margin_text(run.score, run.contests[-1]["soup.margin"]) if run.contests else "",
        "lost": [str(row["segment"] + 1) for row in run.contests if row["soup.lost"]],
        "cards": cards(run),
        "training": _there(
            plots.progress(run),
            plots.soup(run),
            plots.geometry(run),
            plots.layers(run),
            plots.channels(run),
            plots.removed(run),
        ),
        "planned": (PLANNED, planned(run)),
        "rates": _there(plots.rates(run)),
        "scores": scores(run),
        "testing": _there(
            evaluation_charts.calibration(run), evaluation_charts.classes(run), *evaluation_charts.heat_maps(run)
        ),
        "costs": costs(run),
        "options": [(key, text(value)) for key, value in run.config.items()],
    }


def badge(run: Run) -> Markup:
    """The run's status."""
    return Markup('<span class="badge {0}">{0}</span>').format(run.status)


def shown(key: str, value: float | None) -> str:
    """A value of summary.json as a page shows it; a dash for none."""
    if value is None:
        return "–"
    if key.endswith(("accuracy", "sparsity")):
        return percent(value, 2)
    if key.startswith(("test.", "candidates.")):
        return f"{value:.4f}"
    if key.startswith("bytes."):
        return decimal(int(value))
    if key.startswith("latency."):
        return f"{1000 * value:.3g} ms"
    return duration(value) if key == "wall_seconds" else f"{value:,.0f}"


def text(value: Any) -> str:
    """An option's value, the same text for equal values."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def entries(run: Run, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Key, name and text of each value that the summary has."""
    return [(key, name, shown(key, v)) for key, name in names.items() if (v := run.summary.get(key)) is not None]


def cards(run: Run) -> list[tuple[str, str, str]]:
    """The main results; a single candidate is the soup, and has no card."""
    alone = run.summary.get("candidates.count") == 1
    names = {
        f"test.{run.score}": f"test {run.score}",
        "sparsity": "sparsity, prunable",
        "model_sparsity": "sparsity, all weights",
        f"candidates.mean_{run.score}": "mean candidate, test",
        f"candidates.best_{run.score}": "best candidate, test",
        "test.worst_class_accuracy": "worst class",
        "test.loss": f"{loss_name(run.score)}, test",
        "test.ece": "ECE, test",
        "nonzero": "nonzero parameters",
        "wall_seconds": "time",
    }
    return [card for card in entries(run, names) if not (alone and card[0].startswith("candidates."))]


def loss_name(score: str) -> str:
    """What the loss is called beside a score: a classifier's is the negative log likelihood."""
    return "NLL" if score == "accuracy" else "loss"


def verdict(run: Run) -> list[str]:
    """A finished run's score in words, and how far it is from its candidates' mean and best, if they are known."""
    soup, score = run.summary.get(f"test.{run.score}"), run.score
    if soup is None:
        return ["not finite"]
    found = [score_number(score, soup, 2)]
    others = [run.summary.get(f"candidates.{which}_{score}") for which in ("mean", "best")]
    if (run.summary.get("candidates.count") or 1) > 1 and None not in others:
        found += [f"{gap_text(score, abs(soup - other))} {'below' if soup < other else 'above'}" for other in others]
    return found


def gains(run: Run) -> list[str]:
    """What the soup brought over its candidates by each measure, and whether so many examples can tell it from 0."""
    found = []
    for name, said in ((run.score, run.score), ("loss", loss_name(run.score))):
        if not (interval := gain_text(name, run.summary)):
            continue
        low, high = (run.summary[f"gain.{name}.{end}"] for end in ("low", "high"))
        value = signed_text(name, run.summary[f"gain.{name}"]) + (" points" if is_share(name) else "")
        apart = "not told apart" if low <= 0.0 <= high else "told apart"
        found.append(f"Over its mean candidate: {said} {value}, {interval} over the test examples: {apart}.")
    return found


def costs(run: Run) -> list[tuple[str, str, str]]:
    """Operations, bytes, images and time."""
    dense, sparse = run.summary.get("flops.dense"), run.summary.get("flops.sparse")
    of_dense = {"flops.sparse": f" ({percent(sparse / dense)} of dense)"} if dense and sparse is not None else {}
    if "prunable_share" in run.summary:
        of_dense["prunable"] = f" ({percent(run.summary['prunable_share'], 2)} of all parameters)"
    return [(key, name, text + of_dense.get(key, "")) for key, name, text in entries(run, COSTS)]


def planned(run: Run) -> Sequence[Sequence[str]]:
    """The plan's segments beside what became of them, in the columns PLANNED."""
    reached, merges, tests = ({row["segment"]: row for row in run.rows[k]} for k in ("segment", "merge", "evaluate"))
    rows = []
    for number, plan in enumerate(run.segments):
        merge, test = merges.get(number), tests.get(number)
        merged = ("–",) * 4 + ("",)
        if merge:
            several = len(merge["candidates"]) > 1
            merged = (
                f"{len(merge['ingredients'])} of {len(merge['candidates'])}",
                score_number(run.score, merge["soup"], 2),
                plots.points(run.score, merge["soup"], merge["best"]) if several else "–",
                plots.plain(merge["barrier"]) if several else "–",
                _LOST if merge.get("soup.lost") else "",
            )
        rows.append(
            (
                str(number + 1),
                f"{plan['start_epoch']:.4g} – {plan['start_epoch'] + plan['epochs']:.4g}",
                percent(plan["sparsity"], 2),
                percent(reached[number]["sparsity"], 2) if number in reached else "not reached",
                str(plan["replicas"]),
                *merged,
                score_number(run.score, test[f"test.{run.score}"], 2) if test else "–",
            )
        )
    return rows


def scores(run: Run) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows of a table of the test split's scores, a column for each variant of the model."""
    found = evaluation_charts.variants(run)
    if not found:
        return [], []
    names = run.evaluation.get("class_names", [])
    rows = [
        [title, *(cell(key, each["test"], names) for each in found.values())]
        for key, title in titles(found.values()).items()
    ]
    if "dense" in run.evaluation:
        agreements = (shown("accuracy", variant.get("agreement")) for variant in found.values())
        rows.append([f"agrees with {run.evaluation['dense']}", *agreements])
    return [f"test split of {run.evaluation['data']['name']}", *found], [row for row in rows if any(row[1:])]


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart]
