"""Tables for the terminal: a plan, a run's summary, an evaluation. Does not import torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from sparsekit.display.text import duration, gain_text, is_share, listed, percent, score_number, score_text, signed_text

NAMES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "worst_class_accuracy": "worst class",
    "loss": "NLL",
    "ece": "ECE",
    "mce": "MCE",
    "brier": "Brier",
}
"""Titles of scalar metrics, in the order in which they are shown."""
FLOOR = "--masks.floor 1, or a fraction such as 0.01, keeps that much of every layer"
"""How layers are kept from losing all their weights."""
VARIANTS = {"saved": "as saved", "recalibrated": "BatchNorm recalibrated"}


def plan_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A plan with a row per segment, each a mapping as `planning.plan.table_rows` returns."""
    table = _table()
    adapts = ["d"] if any(row.get("d") for row in rows) else []
    for title in ("segment", "start", "epochs", "sparsity", "learning rate", *adapts, "replicas", "merge"):
        table.add_column(title, justify="left" if title in ("learning rate", "d", "merge") else "right")
    rewinds = any(row.get("rewind") is not None for row in rows)
    if rewinds:
        table.add_column("weights of")
    for row in rows:
        back = row.get("rewind")
        table.add_row(
            str(row["segment"]),
            f"{row['start_epoch']:.4g}",
            f"{row['epochs']:.4g}",
            percent(row["sparsity"], 2),
            row["lr"] or "–",
            *([row["d"] or "–"] if adapts else []),
            str(row["replicas"]),
            row["merge"] or "–",
            *([f"epoch {rows[back]['start_epoch']:.4g}" if back is not None else "–"] if rewinds else []),
        )
    return table


def summary_table(summary: Mapping[str, Any], wandb: Sequence[str] = ()) -> Table:
    """A run's summary: scores of soup and candidates, sizes, paths; entries that are missing or None are left out.

    Args:
        summary: The content of summary.json.
        wandb: URL of the W&B run, and folders for `wandb sync`.
    """
    table = _table(header=False)
    table.add_column(style="dim")
    table.add_column()
    known = {key: value for key, value in summary.items() if value is not None}
    if known.get("candidates.count") == 1:  # nothing was merged: it would be compared with itself
        known = {key: value for key, value in known.items() if not key.startswith("candidates.")}

    def add(name: str, line: Callable[..., str], *keys: str) -> None:
        if all(key in known for key in keys):
            table.add_row(name, Text(line(*(known[key] for key in keys))))

    if "status" in known:
        name = run_title(known.get("method"), known.get("merge"), known.get("merged"))
        table.add_row(name, Text(known["status"], "" if known["status"] == "done" else "yellow"))
    score = known.get("score", "accuracy")
    tested, mean, best = f"test.{score}", f"candidates.mean_{score}", f"candidates.best_{score}"
    if tested in known:
        reached = (score_text if mean in known else score_number)(score, known[tested], 2)
        text = f"{reached} on the test split" + (f", loss {known['test.loss']:.4f}" if "test.loss" in known else "")
        table.add_row("soup" if mean in known else score, Text(text, "bold"))
    for name, key in (("mean candidate", mean), ("best candidate", best)):
        interval = gain_text(score, known) if key == mean else ""
        about = f", {interval} over the test examples" if interval else ""
        add(name, partial(_candidate, score, about), key, tested)
    if measures := _further(known, score):
        table.add_row("", Text(measures))
    add("merges lost", lambda *counts: _lost(score, *counts), "merges.lost", "merges.count", "merges.margin")
    add("calibration", lambda e, b: f"ECE {e:.4f}, Brier {b:.4f}", "test.ece", "test.brier")
    classes = known.get("class_names", [])
    worst = "test.worst_class", "test.worst_class_accuracy"
    add("worst class", lambda c, a: f"{percent(a, 2)}, class {class_name(classes, c)}", *worst)
    every = "on average over all kinds and severities"
    add("corrupted", lambda a: f"{score_text(score, a, 2)} {every}", f"test.corrupted_{score}")
    add("sparsity", lambda a: f"{percent(a, 2)} of the prunable weights", "sparsity")
    add("", lambda a: f"{percent(a, 2)} of all parameters", "model_sparsity")
    add(
        "prunable",
        lambda n, share: f"{n:,} weights, {percent(share, 2)} of all parameters",
        "prunable",
        "prunable_share",
    )
    if known.get("layers.empty"):
        table.add_row("empty layers", Text(empty_layers(known["layers.empty"]), "yellow"))
    add("nonzero", lambda a, n: f"{a:,} of {n:,} parameters", "nonzero", "parameters")
    add("model size", decimal, "model_bytes")
    add("time", lambda s, n: f"{duration(s)}, {n} segment{'s' * (n != 1)}", "wall_seconds", "segments")
    add("run", str, "out")
    add("model", lambda out, _: str(Path(out) / "model"), "out", "model_bytes")
    add("report", str, "report")
    urls = [location for location in wandb if location.startswith("http")]
    for url in urls:
        table.add_row("W&B", url)
    if folders := [shlex.quote(location) for location in wandb if location not in urls]:
        table.add_row("W&B", f"offline; to upload: wandb sync {' '.join(folders)}")
    return table


def empty_layers(names: Sequence[str]) -> str:
    """A line that names layers whose weights are all 0, and the fix."""
    return f"{listed(names)}: all weights are 0; {FLOOR}"


def run_title(method: object, merge: object, merged: bool | None) -> str:
    """What a run was: its method and its merge, which is not named where it never had anything to merge."""
    if merged is False:
        return f"{method}, nothing merged"
    return " + ".join(str(part) for part in (method, merge) if part is not None)


def _candidate(score: str, about: str, value: float, soup: float) -> str:
    return f"{score_text(score, value, 2)}  (soup {signed_text(score, soup - value)}{about})"


def _further(known: Mapping[str, Any], score: str) -> str:
    """A line with the measures of other tasks than classification, beside score and loss."""
    shown = {score, f"corrupted_{score}", "worst_class", *NAMES}
    tested = {key.removeprefix("test."): value for key, value in known.items() if key.startswith("test.")}
    names = [name for name in tested if name not in shown]
    return ", ".join(f"{name} {score_number(name, tested[name], 2)}" for name in names)


def margin_text(score: str, margin: float) -> str:
    """How far a soup may fall behind: for accuracies in points."""
    return f"{100 * margin:g} point{'s' * (margin != 0.01)}" if is_share(score) else f"{margin:g}"


def _lost(score: str, lost: int, count: int, margin: float) -> str:
    far = margin_text(score, margin)
    return f"{lost} of {count}: the soup more than {far} below its best candidate, held out"


def evaluation(found: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Tables of an evaluation: metrics with a column per variant of BatchNorm, then scores under corruptions.

    Args:
        found: The content of evaluation.json.
    """
    variants: Mapping[str, Any] = found["variants"]
    table = _table()
    table.add_column(f"{found['data']['images']:,} images", style="dim")
    for name in variants:
        table.add_column(VARIANTS[name], justify="right")
    for key, title in titles(variants.values()).items():
        cells = [cell(key, variant["test"], found.get("class_names", [])) for variant in variants.values()]
        if any(cells):
            table.add_row(title, *cells)
    if any("agreement" in variant for variant in variants.values()):
        table.add_row("agrees with dense", *(percent(v["agreement"], 2) for v in variants.values()))
    yield table
    for name, variant in variants.items():
        for key in ("corruptions", "corruption_files"):
            if key in variant:
                yield Text()
                of = VARIANTS[name] if len(variants) > 1 else ""
                yield corruptions(variant[key], of, found.get("score", "accuracy"))


def titles(variants: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Titles of the scalar metrics that an evaluation's variants have, in the order in which they are shown."""
    found = dict.fromkeys(key for variant in variants for key in variant["test"] if key != "worst_class")
    known = NAMES if "accuracy" in found else {}  # "NLL" is not the name of every loss
    return {key: known[key] for key in known if key in found} | {key: key for key in found if key not in known}


def class_name(names: Sequence[str], label: int) -> str:
    """A class's name; its number if it has none."""
    return names[label] if label < len(names) else str(label)


def cell(key: str, test: Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """A metric as text; empty if it was not measured.

    Args:
        key: The metric.
        test: The metrics by key.
        classes: The classes' names, by label; empty if they have none.
    """
    value = test.get(key)
    if value is None:
        return "not finite" if key in test else ""
    if key.endswith("accuracy"):
        worst = test.get("worst_class") if key.startswith("worst") else None
        return percent(value, 2) + ("" if worst is None else f" (class {class_name(classes, worst)})")
    return f"{value:.4f}"


def corruptions(rows: Mapping[str, list[Mapping[str, float | None]]], of: str, score: str = "accuracy") -> Table:
    """Scores by kind of corruption and severity, with means; `of` names the variant in the heading."""
    table = _table()
    table.add_column(f"{score}, {of}".strip(", "), style="dim")
    for severity in range(1, 6):
        table.add_column(f"severity {severity}", justify="right")
    table.add_column("mean", justify="right")
    lines = {kind: with_mean([cell[score] for cell in cells]) for kind, cells in rows.items()}
    for kind, values in lines.items():
        table.add_row(kind.replace("_", " "), *(score_number(score, value) for value in values))
    columns = [[line[i] for line in lines.values()] for i in range(5)]
    means = with_mean([with_mean(column)[-1] for column in columns])
    table.add_row("mean", *(Text(score_number(score, value), "bold") for value in means))
    return table


def with_mean(values: Sequence[float | None]) -> list[float | None]:
    """The values and their mean; None, too, where a value is."""
    known = [value for value in values if value is not None]
    return [*values, sum(known) / len(known) if len(known) == len(values) else None]


def _table(header: bool = True) -> Table:
    return Table(box=None, show_header=header, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
