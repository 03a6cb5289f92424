"""Stochastic weight averaging, and exponential moving averages."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit import Candidate, CoefficientMerge, MergeStep
from sparsekit.schedules import check_option
from sparsekit_merges._shared import equal_shares


class SWA(CoefficientMerge):
    """Average every replica along its trajectory, and the replicas (Izmailov et al., arXiv 1803.05407).

    A candidate is the mean of its weights over the optimizer steps of the segment from `start` on. With
    `--replicas.count 1` this is SWA itself, once a segment. A method that plans its own trajectory means keeps them.
    The paper keeps the rate constant or cyclic meanwhile; here it is the method's schedule.

    Args:
        start: Fraction of the segment from which the trajectory is averaged, 0 to below 1.
        decay: Factor by which each step fades those before it, above 0 and up to 1. 1 is the plain mean; below 1 it is
            an exponential moving average over some 1 / (1 − decay) steps, and the plain mean of fewer.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, start: float = 0.75, decay: float = 1.0) -> None:
        check_option("merge.start", start, 0.0 <= start < 1.0, "a fraction of the segment from 0 to below 1")
        check_option("merge.decay", decay, 0.0 < decay <= 1.0, "a factor above 0 and up to 1")
        self.start, self.decay = start, decay

    @property
    def average_from(self) -> float | None:
        """The fraction of a segment from which candidates are means."""
        return self.start

    @property
    def average_decay(self) -> float:
        """The factor by which each step fades those before it."""
        return self.decay

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return equal_shares(len(candidates))
