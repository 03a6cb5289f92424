"""Likelihood weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

from sparsekit import Candidate, CoefficientMerge, MergeStep
from sparsekit.schedules import check_option
from sparsekit_merges._shared import equal_shares


class Likelihood(CoefficientMerge):
    """Weigh candidates by their held-out likelihood, ∝ exp(−(NLL_i − min NLL)/T) (pseudo-BMA, arXiv 1704.02030).

    NLL is the mean held-out loss of an image. Pseudo-BMA (Yao et al.) averages predictions with T = 1/n for n held-out
    images, which soon leaves only the best candidate; the larger T, the nearer to the plain mean.

    Args:
        temperature: The loss in nats an image by which a candidate is worse than the best when its weight is e times
            smaller, above 0.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, temperature: float = 0.05) -> None:
        check_option("merge.temperature", temperature, 0.0 < temperature < inf, "a number of nats above 0")
        self.temperature = temperature

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        losses = [candidate.score.loss for candidate in candidates]
        best = min(losses)
        if best == inf:
            return equal_shares(len(candidates))
        likelihoods = [exp(-(loss - best) / self.temperature) for loss in losses]
        return [likelihood / sum(likelihoods) for likelihood in likelihoods]
