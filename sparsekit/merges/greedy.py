"""The greedy soup."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.api import Candidate, CoefficientMerge, MergeStep


class Greedy(CoefficientMerge):
    """Add each candidate, best first, that does not lower held-out score (Wortsman et al., arXiv 2203.05482)."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].score.value, candidates[i].score.loss))
        chosen, best = order[:1], candidates[order[0]].score.value
        for i in order[1:]:
            trial = [*chosen, i]
            score = step.score(step.average(candidates, _equal(trial, len(candidates)))).value
            if score >= best:
                chosen, best = trial, score
        return _equal(chosen, len(candidates))


def _equal(chosen: Sequence[int], count: int) -> list[float]:
    return [1.0 / len(chosen) if i in chosen else 0.0 for i in range(count)]
