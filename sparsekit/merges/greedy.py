"""The greedy soup."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.api import Candidate, CoefficientMerge, MergeStep


class Greedy(CoefficientMerge):
    """Add each candidate, best first, that does not lower held-out accuracy (Wortsman et al., arXiv 2203.05482)."""

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].score.accuracy, candidates[i].score.loss))
        chosen, best = order[:1], candidates[order[0]].score.accuracy
        for i in order[1:]:
            trial = [*chosen, i]
            accuracy = step.score(step.average(candidates, _equal(trial, len(candidates)))).accuracy
            if accuracy >= best:
                chosen, best = trial, accuracy
        return _equal(chosen, len(candidates))


def _equal(chosen: Sequence[int], count: int) -> list[float]:
    return [1.0 / len(chosen) if i in chosen else 0.0 for i in range(count)]
