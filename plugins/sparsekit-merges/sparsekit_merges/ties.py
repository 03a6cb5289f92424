"""TIES merging."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from sparsekit import Candidate, MergeStep, MergeStrategy, Soup
from sparsekit.schedules import check_option
from sparsekit_merges._shared import changes, merge_changes, trained


class TIES(MergeStrategy):
    """Trim changes from the parent, elect a sign, average those that agree (Yadav et al., arXiv 2306.01708).

    Of each candidate's changes the largest stay, as many as `density` says of the live weights of the whole model:
    weights that are not 0 in the parent or in any candidate. A weight's sign is that of the summed changes; where they
    cancel exactly the parent stays.

    Args:
        density: Fraction of the live weights whose change is kept, above 0 and up to 1; equal changes stay together.
            The paper's top k %, as a fraction.
        scale: Factor λ of the merged change, above 0.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, density: float = 0.2, scale: float = 1.0) -> None:
        check_option("merge.density", density, 0.0 < density <= 1.0, "a fraction above 0 and up to 1")
        check_option("merge.scale", scale, 0.0 < scale < inf, "a number above 0")
        self.density, self.scale = density, scale

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        limits = self._limits(candidates, step)

        def combine(moved: Tensor) -> Tensor:
            trimmed = moved * (moved.abs() >= limits.reshape(-1, *[1] * (moved.dim() - 1)))
            agreeing = trimmed * trimmed.sum(0).sign() > 0.0
            return self.scale * (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)

        return merge_changes(candidates, step, combine)

    def _limits(self, candidates: Sequence[Candidate], step: MergeStep) -> Tensor:
        """The smallest change that each candidate keeps. Holds one candidate's changes at a time."""
        names = trained(step.parent)
        live = 0
        for name in names:
            weights = [step.parent[name], *(candidate.read(name) for candidate in candidates)]
            live += int(torch.stack(weights).ne(0).any(0).sum())
        kept = max(1, round(self.density * live))
        limits = []
        for candidate in candidates:
            sizes = torch.cat([changes([candidate], step, name).abs().flatten() for name in names])
            limits.append(sizes.kthvalue(len(sizes) - kept + 1).values)  # weights that are not live are the smallest
        return torch.stack(limits)
