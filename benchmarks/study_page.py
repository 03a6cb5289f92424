"""A study's page: in each section what its arms reached, their comparisons, and a plot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from study_plots import bars
from study_tables import MEASURES, Arm, mean, table
from study_tests import Pairs, comparisons

READ = """\
Mean ± standard error over the seeds. Differences are paired by seed, with their 95 % interval by Student's t; p is of a
two-sided t-test, with Holm's correction over all tests of its table, **bold** where below 0.05; "–" where fewer than
three seeds have both, or all differ by the same. *Mean candidate* is the mean of the last merge's replicas, *ensemble*
the mean of their probabilities (m forward passes an image); the best candidate is chosen with the test images
themselves, so no one could have chosen it. BatchNorm was measured again on the training images for every model here,
averaged or not. *Corrupted* is the mean accuracy over sixteen kinds of corruption at five severities. For NLL, ECE and
Brier score less is better.
"""


class Page:
    """A study told.

    Attributes:
        title: Its heading.
        parts: Markdown, paragraph by paragraph.
        plots: SVG by file name.
        found: What it says, a line each.
    """

    def __init__(self, name: str, title: str, head: str) -> None:
        self.name, self.title, self.parts = name, title, [f"# {title}\n", head, READ]
        self.plots, self.found = dict[str, str](), list[str]()

    @property
    def text(self) -> str:
        """The whole page."""
        return "\n".join(self.parts)

    def section(
        self,
        label: str,
        arms: Sequence[Arm],
        pairs: Pairs,
        *,
        measures: Sequence[str] = ("accuracy", "NLL"),
        drawn: str = "accuracy",
        facts: Mapping[str, Callable[[Arm], str]] | None = None,
        intro: str = "",
        counted: str = "seeds",
    ) -> None:
        """Arms and comparisons, those that have rows; `facts` are more columns of the arms' table."""
        arms, facts = [arm for arm in arms if arm.rows], facts or {}
        shown = [measure for measure in MEASURES if any(arm.reached(measure) for arm in arms)]
        units = [f"{measure}, %" if MEASURES[measure].unit == "points" else measure for measure in shown]
        body = [
            [
                arm.name,
                f"{arm.rows[0]['images.total']:,}" if "images.total" in arm.rows[0] else "–",
                len(arm.rows),
                *(mean(arm.reached(measure), MEASURES[measure].digits) for measure in shown),
                *(fact(arm) for fact in facts.values()),
            ]
            for arm in arms
        ]
        self.parts += [
            f"## {label}\n",
            *([intro] if intro else []),
            table(["what", "training images", counted, *units, *facts], body),
        ]
        text, said = comparisons(pairs, measures, counted)
        self.parts += [text] if text else []
        self.found += [f"{label}, {line}" for line in said]
        if drawn:
            values = [(arm.name, list(arm.reached(drawn).values())) for arm in arms]
            ending = "-".join(re.findall(r"\w+", label.removesuffix(" % sparse").lower()))
            self.plot(ending, f"{label}, every arm: {drawn}, %", bars(values, f"{drawn}, %"))

    def plot(self, ending: str, alt: str, svg: str) -> None:
        """A picture beside the page."""
        self.plots[f"{self.name}-{ending}.svg"] = svg
        self.parts.append(f"![{alt}]({self.name}-{ending}.svg)\n")
