"""No merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sparsekit.api import Candidate, CoefficientMerge, MergeStep


class NoMerge(CoefficientMerge):
    """Train a single replica and keep it, even if `--replicas.count` is higher."""

    max_replicas: ClassVar[int | None] = 1

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return [1.0] + [0.0] * (len(candidates) - 1)
