"""The mean of all candidates."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.api import Candidate, CoefficientMerge, MergeStep


class Uniform(CoefficientMerge):
    """Average all candidates with equal weights (Wortsman et al., arXiv 2203.05482)."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return [1.0 / len(candidates)] * len(candidates)
