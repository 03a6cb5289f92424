"""The charts of what was measured on the test split; None where a run has no data for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan

from markupsafe import Markup

from sparsekit.display.tables import VARIANTS, class_name, with_mean
from sparsekit.display.text import is_share, percent, score_number
from sparsekit.report.plots import heading, scale_of
from sparsekit.report.runs import Row, Run
from sparsekit.report.svg import INK, MARKERS, PALETTE, Chart, Plot, draw, legend

BLUE, RED = PALETTE[:2]
SUITES = {"corruptions": "Corruptions.", "corruption_files": "Published corruptions."}
_LONG = 20
"""Letters of a class's name below its bar."""
_SEVERITIES = ("1", "2", "3", "4", "5")


def variants(run: Run) -> dict[str, Row]:
    """The evaluation's variants by what they are called on the page; none where nothing was evaluated."""
    return {VARIANTS.get(key, key): variant for key, variant in run.evaluation.get("variants", {}).items()}


def calibration(run: Run) -> Chart | None:
    """Accuracy against confidence."""
    curves = {
        name: [bar for bar in variant.get("bins", ()) if bar["count"] and isfinite(bar["confidence"])]
        for name, variant in variants(run).items()
    }
    if not any(curves.values()):
        return None
    with Plot(3.3) as plot:
        (panel,) = plot.panels
        panel.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":", label="perfect")
        for index, (name, bars) in enumerate(curves.items()):
            line = [(100 * bar["confidence"], 100 * bar["accuracy"]) for bar in bars]
            draw(panel, line, f"-{MARKERS[index % 6]}", color=PALETTE[index % 6], label=name)
        panel.set_xlim(0, 100)
        panel.set_ylim(0, 103)
        panel.set_xlabel("confidence, %")
        panel.set_ylabel("accuracy, %")
        legend(panel)
        svg = plot.svg("Calibration curve")
    data = [
        (name, str(bar["count"]), percent(bar["confidence"], 2), percent(bar["accuracy"], 2))
        for name, bars in curves.items()
        for bar in bars
    ]
    note = "Below the dotted line the model is overconfident. Test images in fifteen bins of confidence."
    return Chart("Calibration.", svg, ("model", "images", "confidence", "accuracy"), data, note)


def classes(run: Run) -> Chart | None:
    """Accuracy of each class, of the first variant."""
    first: Row = next(iter(variants(run).values()), {})
    measured = first.get("class_accuracy", ())
    values = [(index, accuracy) for index, accuracy in enumerate(measured) if accuracy is not None]
    if not values:
        return None
    names = run.evaluation.get("class_names", [])
    named = {index: class_name(names, index) for index, _ in values}
    ranked = sorted(values, key=lambda item: item[1])
    few = len(values) <= 30
    worst, shown = ranked[0][0], values if few else ranked[:30]
    with Plot(3.0) as plot:
        (panel,) = plot.panels
        colours = [RED if index == worst else BLUE for index, _ in shown]
        panel.bar(range(len(shown)), [100 * v for _, v in shown], color=colours, width=0.7)
        labels = [name if len(name) <= _LONG else f"{name[: _LONG - 1]}…" for name in (named[i] for i, _ in shown)]
        upright = max(map(len, labels)) > 60 // len(labels)
        panel.set_xticks(range(len(shown)), labels, rotation=90 if upright else 0)
        panel.grid(axis="x", visible=False)
        panel.set_ylim(0, 100)
        panel.set_xlabel("class" if few else "the thirty worst classes")
        panel.set_ylabel("accuracy, %")
        panel.tick_params(axis="x", labelsize=9 if len(shown) <= 15 else 6)
        svg = plot.svg("Accuracy of each class")
    data = [(named[index], percent(accuracy, 2)) for index, accuracy in values]
    return Chart("Single classes.", svg, ("class", "accuracy"), data, f"Test split; the worst is class {named[worst]}.")


def heat_maps(run: Run) -> list[Chart]:
    """Scores by kind of corruption and severity: a chart for each variant and suite that was measured."""
    return [
        _heat_map(title, run.score, {k: [c[run.score] for c in cells] for k, cells in variant[key].items()}, name)
        for name, variant in variants(run).items()
        for key, title in SUITES.items()
        if variant.get(key)
    ]


def _heat_map(title: str, score: str, rows: Mapping[str, Sequence[float | None]], variant: str) -> Chart:
    kinds = [kind.replace("_", " ") for kind in rows]
    scale = scale_of(score)
    scores = [[nan if v is None else scale * v for v in cells] for cells in rows.values()]
    known = [value for line in scores for value in line if isfinite(value)] or [0.0]
    low, high = (0.0, 100.0) if is_share(score) else (min(known), max(known))
    with Plot(0.6 + 0.2 * len(rows)) as plot:
        (panel,) = plot.panels
        # vector cells, for an image would be a picture inside the picture
        panel.pcolormesh(scores, cmap="cividis", vmin=low, vmax=high, edgecolors="none")
        for y, line in enumerate(scores):
            for x, value in enumerate(line):
                ink = "#ffffff" if value < low + 0.55 * (high - low) else "#000000"
                text = f"{value:.0f}" if is_share(score) else f"{value:.2f}"
                panel.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=7.5)
        panel.set_xticks([x + 0.5 for x in range(5)], _SEVERITIES)
        panel.set_yticks([y + 0.5 for y in range(len(kinds))], kinds, fontsize=7.5)
        panel.invert_yaxis()
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        panel.set_xlabel("severity")
        svg = plot.svg(f"{heading(score)} under corruptions")
    lines = [with_mean(cells) for cells in rows.values()]
    data = [(kind, *(score_number(score, v) for v in line)) for kind, line in zip(kinds, lines, strict=True)]
    note = Markup('Test {}, model {}; the mean over all is <b data-key="corrupted_{}">{}</b>.')
    name = f"{score} in per cent" if is_share(score) else score
    mean = score_number(score, with_mean([line[-1] for line in lines])[-1], 2)
    return Chart(title, svg, ("kind", *_SEVERITIES, "mean"), data, note.format(name, variant, score, mean))
