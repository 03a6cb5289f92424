"""Choose one candidate instead of averaging."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.api import Candidate, CoefficientMerge, MergeStep


class Best(CoefficientMerge):
    """Keep the candidate with the best held-out score; the lower loss decides a tie."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        best = min(candidates, key=lambda c: (-c.score.value, c.score.loss))
        return [float(c is best) for c in candidates]
