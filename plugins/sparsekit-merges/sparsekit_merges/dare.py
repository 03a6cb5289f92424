"""DARE merging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit import Candidate, MergeStep, MergeStrategy, Soup
from sparsekit.schedules import check_option
from sparsekit_merges._shared import merge_changes


class DARE(MergeStrategy):
    """Drop changes from the parent at random, rescale the rest, average (Yu et al., arXiv 2311.03099).

    Each change of each candidate stays with probability `density` and is then divided by it, so that its expected
    value stays. Masked weights never change: the density is one over live weights.

    Args:
        density: Fraction of the live weights whose change is kept, above 0 and up to 1; 1 − p, p the paper's drop rate.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, density: float = 0.9) -> None:
        check_option("merge.density", density, 0.0 < density <= 1.0, "a fraction above 0 and up to 1")
        self.density = density

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        def combine(changes: Tensor) -> Tensor:
            kept = torch.rand(changes.shape, generator=step.generator, dtype=changes.dtype) < self.density
            return (changes * kept).mean(0) / self.density

        return merge_changes(candidates, step, combine)
