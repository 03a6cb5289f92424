"""Tables for the terminal that are not a plan's or a run's summary. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from sparsekit.display.live import percent

NAMES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "worst_class_accuracy": "worst class",
    "loss": "NLL",
    "ece": "ECE",
    "mce": "MCE",
    "brier": "Brier",
}
"""Single numbers in the order in which they are shown."""
VARIANTS = {"saved": "as saved", "recalibrated": "BatchNorm recalibrated"}


def evaluation(found: Mapping[str, Any]) -> Iterator[Table | Text]:
    """What an evaluation found: a column each way of treating BatchNorm, then the corruptions."""
    variants: Mapping[str, Any] = found["variants"]
    table = _table()
    table.add_column(f"{found['data']['images']:,} images", style="dim")
    for name in variants:
        table.add_column(VARIANTS[name], justify="right")
    for key, title in NAMES.items():
        cells = [cell(key, variant["test"]) for variant in variants.values()]
        if any(cells):
            table.add_row(title, *cells)
    if any("agreement" in variant for variant in variants.values()):
        table.add_row("agrees with dense", *(percent(v["agreement"], 2) for v in variants.values()))
    yield table
    for name, variant in variants.items():
        for key in ("corruptions", "corruption_files"):
            if key in variant:
                yield Text()
                yield corruptions(variant[key], VARIANTS[name] if len(variants) > 1 else "")


def cell(key: str, test: Mapping[str, Any]) -> str:
    """One number for people; nothing where there is none."""
    value = test.get(key)
    if value is None:
        return "not finite" if key in test else ""
    if key.endswith("accuracy"):
        of = f" (class {test['worst_class']})" if key.startswith("worst") else ""
        return f"{percent(value, 2)}{of}"
    return f"{value:.4f}"


def corruptions(rows: Mapping[str, list[Mapping[str, float]]], of: str) -> Table:
    """Accuracy a kind and severity, and the means."""
    table = _table()
    table.add_column(f"accuracy, {of}".strip(", "), style="dim")
    for severity in range(1, 6):
        table.add_column(f"severity {severity}", justify="right")
    table.add_column("mean", justify="right")
    for kind, cells in rows.items():
        values = [cell["accuracy"] for cell in cells]
        table.add_row(kind.replace("_", " "), *(percent(v) for v in values), percent(sum(values) / len(values)))
    columns = [[cells[i]["accuracy"] for cells in rows.values()] for i in range(5)]
    means = [sum(column) / len(column) for column in columns]
    table.add_row("mean", *(Text(percent(m), "bold") for m in means), Text(percent(sum(means) / 5), "bold"))
    return table


def _table() -> Table:
    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
