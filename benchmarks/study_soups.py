"""The page of a study of soups, beside one model, as much compute, and what their candidates do without averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from study_page import Page
from study_tables import Arm, Row, Rows, part, select, sparsities

NO_ARM = Arm("", [])
TIMES = (3, 5, 10)
LAST = {0.0: "from the start", 0.5: "half-way", 0.7: "in the last segment"}
SHORT = """\
One model trains alone up to the fork; from there on m replicas train each segment and are averaged at its end. *One m
times as long* is one model that trains as long as m together: as many images as the soup of m forked from the start.
"""


class Arms(NamedTuple):
    """A study's arms at one sparsity.

    Attributes:
        single: One model.
        longer: One model that trains as long as so many replicas.
        batches: One model with so many times the batch, for as many steps.
        soups: Those that have runs.
    """

    single: Arm
    longer: dict[int, Arm]
    batches: dict[int, Arm]
    soups: list[Arm]

    def baselines(self) -> dict[str, Arm]:
        """What costs as much as a soup of three, and one model."""
        return {
            "one model": self.single,
            "one 3 times as long": self.longer.get(3, NO_ARM),
            "one with 3 times the batch": self.batches.get(3, NO_ARM),
        }


def arms_of(at: Sequence[Row]) -> Arms:
    """The arms that rows of one sparsity make up."""
    single = Arm("one model", part(at, "single"))
    images = single.rows[0]["images.total"] if single.rows else 0
    soups, longer, batches = list[Arm](), dict[int, Arm](), dict[int, Arm]()
    for m in TIMES:
        if rows := select(part(at, "longer"), images__total=m * images):
            longer[m] = Arm(f"one model, {m} times as long", rows)
        elif rows := part(at, f"retrained{m}"):
            longer[m] = Arm(f"one model, retrained {m}×", rows)
        if rows := part(at, f"batch{m}"):
            batches[m] = Arm(f"one model, {m} times the batch, as many steps", rows)
        soups.append(Arm(f"soup of {m}", part(at, f"soup{m}")))
    kinds = {(row["merge"], row["replicas.count"], row["replicas.start"]) for row in part(at, "soups")}
    for merge, m, start in sorted(kinds, key=lambda kind: (kind[0] != "uniform", *kind)):
        rows = select(part(at, "soups"), merge=merge, replicas__count=m, replicas__start=start)
        soups.append(Arm(f"{merge} soup of {m}, forked {LAST.get(start, f'at {start:g}')}", rows))
    return Arms(single, longer, batches, [arm for arm in soups if arm.rows])


def soups(name: str, every: Rows) -> Page:
    """Soups beside one model, as much compute, and their own candidates."""
    saturated, first = "saturated" in name, every[name][0]
    data, method = "Fashion-MNIST" if name.startswith("fashion") else "digits", str(first["method"]).upper()
    what = "Soups where training is saturated" if saturated else "Soups at every pruning step"
    page = Page(name, f"{what}: {method} on {data}", _saturated(first, data) if saturated else SHORT)
    for label, at in sparsities(every[name]).items():
        arms = arms_of(at)
        more = [*arms.longer.values(), *arms.batches.values()]
        pairs = [] if saturated else [(arm, {"one model": arms.single}) for arm in more]
        for soup in arms.soups:
            longer = arms.longer.get(soup.rows[0]["candidates.count"], NO_ARM)
            pairs.append((soup, {"one model": arms.single, "one m times as long": longer, **soup.candidates()}))
        page.section(label, [arms.single, *more, *arms.soups], pairs)
    if not saturated:
        page.found = [line for line in page.found if "uniform soup of 3" in line]
    return page


def _saturated(row: Row, data: str) -> str:
    dense = round(row["epochs"] * row["method.dense"])
    cycle = (row["epochs"] - dense) // 3
    note = "" if data == "digits" else "Training images are a fifth of Fashion-MNIST's, without augmentation.\n"
    return f"""\
A dense model is trained to its end, {dense} epochs; then three cycles prune it and retrain it, {cycle} epochs each.
Replicas fork at every pruning and are averaged at the end of every cycle. This is the regime of Sparse Model Soups
([arXiv 2306.16788](https://arxiv.org/abs/2306.16788)). *One m times as long* is its baseline of equal compute: one
model from the same dense one, each of whose cycles is m times as long, and as many images as the soup of m.
{note}"""
