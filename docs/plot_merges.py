"""Draws where each merge puts the soup of three models of two weights, as SVG: `python docs/plot_merges.py`.

The merges are the installed classes with their default options. The parent, the candidates, the held-out loss (a
quadratic, drawn as ellipses) and the Fisher information are made up so that the merges differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from plots import FOLDER, path, svg, text
from torch import Tensor

from sparsekit import Candidate, MergeStep, MergeStrategy, Score, Tensors
from sparsekit.merging.average import average
from sparsekit.plugins.registry import discover, find

PARENT, BEST = (0.3, 0.25), (1.65, 0.85)
CANDIDATES = {"A": (1.9, 0.35), "B": (1.1, 1.35), "C": (2.75, 1.55)}
FISHER = {"A": (4.0, 1.0), "B": (1.0, 4.0), "C": (1.0, 1.0)}
CURVATURE = torch.tensor([0.35, 0.6], dtype=torch.float64)
NO_POINT = {"none", "swa", "regmean"}
"""One trains a single replica, one is `uniform` of candidates that are means themselves, one needs inputs of layers."""


@dataclass
class Point(Candidate):
    """A candidate of two weights."""

    index: int
    at: tuple[float, float]
    score: Score

    def names(self) -> Sequence[str]:
        return ["w"]

    def read(self, name: str) -> Tensor:
        return torch.tensor(self.at, dtype=torch.float64)


def loss(tensors: Tensors) -> Tensor:
    """The made-up held-out loss."""
    return (CURVATURE * (tensors["w"] - torch.tensor(BEST, dtype=torch.float64)).square()).sum()


def score(tensors: Tensors) -> Score:
    """An accuracy that falls as the loss rises."""
    value = float(loss(tensors))
    return Score(1.0 - value / 10.0, value)


def fisher(candidate: Candidate, images: int = 256) -> Tensors:
    """The made-up Fisher information."""
    return {"w": torch.tensor([*FISHER.values()][candidate.index], dtype=torch.float64)}


def soup_of(merge: MergeStrategy) -> tuple[float, float]:
    """Where a merge puts the soup."""
    places = [torch.tensor(at, dtype=torch.float64) for at in CANDIDATES.values()]
    candidates = [Point(i, at, score({"w": places[i]})) for i, at in enumerate(CANDIDATES.values())]
    step = MergeStep(
        average=partial(average, names=["w"]),
        score=score,
        loss=loss,
        fisher=fisher,
        parent={"w": torch.tensor(PARENT, dtype=torch.float64)},
        generator=torch.Generator().manual_seed(0),
    )
    x, y = merge.merge(candidates, step).tensors["w"].tolist()
    return round(x, 4), round(y, 4)


def names() -> list[str]:
    """The merges that have a picture."""
    return sorted({p.name for p in discover().plugins if p.kind == "merge"} - NO_POINT)


def picture(name: str) -> str:
    """Parent, candidates and soup in the plane of the two weights."""
    soup = soup_of(find("merge", name).load()())
    (left, top), (x, y) = _screen(BEST), _screen(soup)
    body = [
        f'<ellipse class="line" cx="{left:.1f}" cy="{top:.1f}" rx="{135 * (r / 0.35) ** 0.5:.1f}" '
        f'ry="{135 * (r / 0.6) ** 0.5:.1f}"/>'
        for r in (0.02, 0.12, 0.3, 0.56)
    ]
    body += [path("c", [_screen(PARENT), _screen(at)]) for at in CANDIDATES.values()]
    for label, at in CANDIDATES.items():
        cx, cy = _screen(at)
        body += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" style="fill:var(--c)"/>', text(cx + 9, cy + 4, label)]
    cx, cy = _screen(PARENT)
    body += [path("c", [(cx - 5, cy), (cx + 5, cy)]), path("c", [(cx, cy - 5), (cx, cy + 5)])]
    body += [text(cx - 8, cy + 20, "parent"), text(left + 6, top - 8, "lowest loss") if name == "uniform" else ""]
    body += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="1.5" style="fill:var(--ink)"/>']
    body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" style="fill:none;stroke:var(--b);stroke-width:3"/>']
    return svg(236, f"Where {name} puts the soup", {"merge": name, "soup": soup}, body)


def _screen(at: tuple[float, float]) -> tuple[float, float]:
    return 20 + 135 * at[0], 226 - 120 * at[1]


def main() -> None:
    """Write a picture a merge."""
    for name in names():
        file = FOLDER / "merges" / f"{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(picture(name), "utf-8")
        print(file)


if __name__ == "__main__":
    main()
