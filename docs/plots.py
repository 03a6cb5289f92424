"""Draws each installed method's plan, and one plan with its replicas, as SVG: `python docs/plots.py`.

What is drawn is what `sparsekit plan --method NAME` would do by default. The figures that a picture shows are also
kept in it as JSON (`<metadata>`), which `tests/docs/test_docs_pages.py` holds against the plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import inf
from pathlib import Path

from sparsekit.api import Stage
from sparsekit.config import parser
from sparsekit.config.options import FitConfig
from sparsekit.planning import plan
from sparsekit.plugins.registry import discover

FOLDER = Path(__file__).parent / "pictures"
STYLE = """
svg{--ink:#333;--line:#ccc;--a:#0072b2;--b:#c84c00;--c:#00805f;--fill:#0072b222;font:13px system-ui,sans-serif}
@media(prefers-color-scheme:dark){svg{--ink:#ddd;--line:#666;--a:#6bb8ea;--b:#f0904f;--c:#4fc9a4;--fill:#6bb8ea33}}
text{fill:var(--ink)}.line{fill:none;stroke:var(--line)}.a{fill:none;stroke:var(--a);stroke-width:2}
.b{fill:none;stroke:var(--b);stroke-width:2}.c{fill:none;stroke:var(--c);stroke-width:2}
.fill{fill:var(--fill)}.band{fill:var(--b);opacity:.25}.box{fill:var(--fill);stroke:var(--a)}
"""
WIDTH, LEFT, RIGHT = 480.0, 66.0, 470.0
SPARSITY, RATE, TRACK = (18.0, 88.0), (112.0, 172.0), 200.0
"""Top and bottom of the panels, and the middle of the replicas' line."""


@dataclass(frozen=True)
class Drawn:
    """What a picture shows.

    Attributes:
        segments: Start and length in epochs, sparsity, replicas.
        rates: Epoch, lowest and highest learning rate; they differ where a rate depends on the weights.
    """

    segments: list[tuple[float, float, float, int]]
    rates: list[tuple[float, float, float]]

    @property
    def epochs(self) -> float:
        """Where the plan ends."""
        start, length, _, _ = self.segments[-1]
        return start + length


def configured(method: str) -> FitConfig:
    """The default run with this method."""
    return parser.parse(parser.build("plots", ""), ["--method", method])


def drawn(config: FitConfig) -> Drawn:
    """The figures of a run's plan."""
    stages = plan.make_stages(config)
    rows = plan.summarize(config, plan.make_plan(config, stages)).segments
    rates = [point for stage in stages if stage.segment.epochs > 0 for point in _rates(config, stage)]
    return Drawn([(r.start_epoch, r.epochs, r.sparsity, r.replicas) for r in rows], rates)


def _rates(config: FitConfig, stage: Stage) -> Iterable[tuple[float, float, float]]:
    """So many points that a warm-up has its corner; the last is just before the next segment."""
    bounds = [config.method.learning_rate(replace(stage, relative_change=x)) for x in (0.0, inf)]
    share = stage.segment.epochs / stage.budget.epochs
    count = 40 * max(1, round(2 * share)) if bounds[0].restarts else 10 * max(1, round(10 * share))
    for i in range(count + 1):
        done = i / count
        low, high = sorted(round(config.optimizer.lr * schedule(done), 6) for schedule in bounds)
        yield round(stage.start + done * stage.segment.epochs, 6), low, high


# --- SVG ---------------------------------------------------------------------------------------------


def svg(height: float, label: str, data: object, body: Iterable[str]) -> str:
    """A picture that follows the reader's light or dark scheme, wherever it is shown."""
    metadata = escape(json.dumps(data, default=vars), quote=False)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img" width="{WIDTH:g}">'
    return "\n".join([head, f"<title>{escape(label)}</title>", f"<style>{STYLE}</style>",
                      f"<metadata>{metadata}</metadata>", *body, "</svg>", ""])  # fmt: skip


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def path(kind: str, points: Sequence[tuple[float, float]], closed: bool = False) -> str:
    """A line through points, or an area."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{steps}{"Z" if closed else ""}"/>'


def place(epoch: float, epochs: float) -> float:
    """Where an epoch is, from left to right."""
    return LEFT + (RIGHT - LEFT) * epoch / epochs


def level(value: float, top: float, panel: tuple[float, float]) -> float:
    """Where a value of 0 to `top` is in a panel."""
    return panel[1] - (panel[1] - panel[0]) * value / top


def axis(epochs: float, y: float) -> Iterable[str]:
    """Epochs below the panels."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        yield text(place(share * epochs, epochs), y, f"{share * epochs:g}", anchor)
    yield text(0, y, "epoch")


def schedule(name: str, shown: Drawn) -> str:
    """Sparsity, learning rate and replicas over the budget."""
    epochs, top = shown.epochs, max(high for _, _, high in shown.rates)
    final = shown.segments[-1][2]
    steps = [
        (place(start + at, epochs), level(sparsity, final, SPARSITY))
        for start, length, sparsity, _ in shown.segments
        for at in (0.0, length)
    ]
    low = [(place(epoch, epochs), level(rate, top, RATE)) for epoch, rate, _ in shown.rates]
    high = [(place(epoch, epochs), level(rate, top, RATE)) for epoch, _, rate in shown.rates]
    body = [text(0, SPARSITY[0] + 4, "sparsity"), text(0, SPARSITY[0] + 20, f"{100 * final:g} %")]
    body += [path("line", [(LEFT, y), (RIGHT, y)]) for _, y in (SPARSITY, RATE)]
    body += [path("fill", [(LEFT, SPARSITY[1]), *steps, (RIGHT, SPARSITY[1])], closed=True), path("a", steps)]
    body += [text(0, RATE[0] + 4, "rate"), text(0, RATE[0] + 20, f"≤ {top:.3g}")]
    body += [path("band", [*low, *reversed(high)], closed=True)] if low != high else []
    body += [path("b", high), text(0, TRACK + 4, "replicas")]
    for start, length, _, replicas in shown.segments:
        if length > 0:
            body += track(place(start, epochs), place(start + length, epochs), replicas)
    return svg(TRACK + 34, f"The plan of {name}", shown, [*body, *axis(epochs, TRACK + 28)])


def track(left: float, right: float, replicas: int, middle: float = TRACK, spread: float = 16.0) -> Iterable[str]:
    """A lens from fork to merge with a line a replica, or one line."""
    for i in range(replicas):
        bend = 0.0 if replicas == 1 else spread * (i / (replicas - 1) - 0.5)
        inset = min(8.0, (right - left) / 4)
        apart = middle + bend
        yield path("c", [(left, middle), (left + inset, apart), (right - inset, apart), (right, middle)])
    yield f'<circle cx="{right:.1f}" cy="{middle:g}" r="3" style="fill:var(--c)"/>'


def time_axis(shown: Drawn) -> str:
    """The prunings, forks and merges of a plan, named."""
    epochs, top, bottom = shown.epochs, 44.0, 130.0
    body = [text(0, 20, "prune to"), text(0, (top + bottom) / 2 + 4, "replicas")]
    for start, length, sparsity, replicas in shown.segments:
        left, right = place(start, epochs), place(start + length, epochs)
        if sparsity > 0:
            body += [text(left, 20, f"{100 * sparsity:.0f} %", "middle"), path("line", [(left, 27), (left, bottom)])]
        body += track(left, right, replicas, (top + bottom) / 2, 56.0)
    alone = next(start + length for start, length, _, replicas in shown.segments if replicas == 1)
    body += [text((LEFT + place(alone, epochs)) / 2, top + 26, "one model", "middle")]
    body += [text((place(alone, epochs) + RIGHT) / 2, bottom + 18, "at each line prune and fork, at each dot merge",
                  "middle")]  # fmt: skip
    return svg(bottom + 52, "A plan on a time axis", shown, [*body, *axis(epochs, bottom + 44)])


def pictures() -> dict[Path, str]:
    """Every picture by its file."""
    methods = sorted({plugin.name for plugin in discover().plugins if plugin.kind == "method"})
    found = {FOLDER / "methods" / f"{name}.svg": schedule(name, drawn(configured(name))) for name in methods}
    return found | {FOLDER / "plan.svg": time_axis(drawn(configured("gmp")))}


def main() -> None:
    """Write all pictures, or those that are named: `python docs/plots.py gmp`."""
    for file, content in pictures().items():
        if len(sys.argv) < 2 or file.stem in sys.argv[1:]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, "utf-8")
            print(file)


if __name__ == "__main__":
    main()
