"""The plots of what was measured on the test split; None where a run has nothing for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsekit.display.tables import VARIANTS
from sparsekit.display.text import percent
from sparsekit.report.html import Html, Table, element, figure, join
from sparsekit.report.runs import Run, number, numbers
from sparsekit.report.svg import INK, MARKERS, PALETTE, Plot, legend

BLUE, RED = PALETTE[:2]


def calibration(run: Run) -> Html | None:
    """Accuracy against confidence."""
    curves = {}
    for name, variant in run.variants().items():
        rows = [
            (int(c), x, y)
            for bar in _list(variant, "bins")
            if isinstance(bar, dict)
            and (c := number(bar.get("count")))
            and (x := number(bar.get("confidence"))) is not None
            and (y := number(bar.get("accuracy"))) is not None
        ]
        if rows:
            curves[name] = rows
    if not curves:
        return None
    with Plot(3.3) as plot:
        (panel,) = plot.panels
        panel.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":", label="perfect")
        for index, (name, rows) in enumerate(curves.items()):
            line = [(100 * c, 100 * a) for _, c, a in rows]
            panel.plot(
                *zip(*line, strict=True),
                marker=MARKERS[index % 6],
                color=PALETTE[index % 6],
                label=VARIANTS.get(name, name),
            )
        panel.set_xlim(0, 100)
        panel.set_ylim(0, 103)
        panel.set_xlabel("confidence, %")
        panel.set_ylabel("accuracy, %")
        legend(panel)
        svg = plot.svg("Calibration curve")
    data = [
        (VARIANTS.get(name, name), str(count), percent(x, 2), percent(y, 2))
        for name, rows in curves.items()
        for count, x, y in rows
    ]
    note = "Below the dotted line the model is too sure of itself. Test images in fifteen bins of confidence."
    return figure("Calibration.", svg, Table(("model", "images", "confidence", "accuracy"), data), note)


def classes(run: Run) -> Html | None:
    """Accuracy on each class."""
    raw = _list(next(iter(run.variants().values()), {}), "class_accuracy")
    values = [(index, v) for index, item in enumerate(raw) if (v := number(item)) is not None]
    if not values:
        return None
    worst = min(values, key=lambda item: item[1])[0]
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        shown = values if len(values) <= 30 else sorted(values, key=lambda item: item[1])[:30]
        colours = [RED if index == worst else BLUE for index, _ in shown]
        panel.bar([str(index) for index, _ in shown], [100 * v for _, v in shown], color=colours, width=0.7)
        panel.grid(axis="x", visible=False)
        panel.set_ylim(0, 100)
        panel.set_xlabel("class" if len(values) <= 30 else "the thirty worst classes")
        panel.set_ylabel("accuracy, %")
        panel.tick_params(axis="x", labelsize=9 if len(shown) <= 15 else 6)
        svg = plot.svg("Accuracy of each class")
    data = [(str(index), percent(v, 2)) for index, v in values]
    return figure(
        "Single classes.", svg, Table(("class", "accuracy"), data), f"Test split; the worst is class {worst}."
    )


def heat_maps(run: Run) -> Html | None:
    """Accuracy a kind of corruption and severity, for each suite that was run."""
    found = []
    for name, variant in run.variants().items():
        for key, title in (("corruptions", "Corruptions."), ("corruption_files", "Published corruptions.")):
            raw = variant.get(key)
            rows = {str(kind): _cells(cells) for kind, cells in raw.items()} if isinstance(raw, dict) else {}
            rows = {kind: cells for kind, cells in rows.items() if len(cells) == 5}
            if rows:
                found.append(_heat_map(title, rows, VARIANTS.get(name, name)))
    return join(found) if found else None


def _list(variant: Mapping[str, Any], key: str) -> list[Any]:
    found = variant.get(key)
    return found if isinstance(found, list) else []


def _cells(cells: object) -> list[float]:
    rows = cells if isinstance(cells, list) else []
    return numbers([cell.get("accuracy") for cell in rows if isinstance(cell, dict)])


def _heat_map(title: str, rows: Mapping[str, Sequence[float]], variant: str) -> Html:
    kinds = [kind.replace("_", " ") for kind in rows]
    shares = [[100 * v for v in cells] for cells in rows.values()]
    with Plot(0.6 + 0.2 * len(rows)) as plot:
        (panel,) = plot.panels
        # vector cells, for an image would be a picture inside the picture
        panel.pcolormesh(shares, cmap="cividis", vmin=0, vmax=100, edgecolors="none")
        for y, line in enumerate(shares):
            for x, value in enumerate(line):
                ink = "#ffffff" if value < 55 else "#000000"
                panel.text(x + 0.5, y + 0.5, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7.5)
        panel.set_xticks([x + 0.5 for x in range(5)], ["1", "2", "3", "4", "5"])
        panel.set_yticks([y + 0.5 for y in range(len(kinds))], kinds, fontsize=7.5)
        panel.invert_yaxis()
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        panel.set_xlabel("severity")
        svg = plot.svg("Accuracy under corruptions")
    data = [
        (kind, *(percent(v) for v in cells), percent(sum(cells) / 5))
        for kind, cells in zip(kinds, rows.values(), strict=True)
    ]
    everything = [v for cells in rows.values() for v in cells]
    mean = element("b", percent(sum(everything) / len(everything), 2), data_key="corrupted_accuracy")
    note = join(["Test accuracy in per cent, model ", variant, "; the mean over all is ", mean, "."])
    return figure(title, svg, Table(("kind", "1", "2", "3", "4", "5", "mean"), data), note)
