"""Model stock."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sparsekit import Candidate, MergeStep, MergeStrategy, Soup
from sparsekit_merges._shared import merge_changes


class ModelStock(MergeStrategy):
    """Draw the mean towards the parent where replicas moved apart (Jang et al., arXiv 2403.19522).

    t·mean + (1 − t)·parent with t = N cos θ / (1 + (N − 1) cos θ) for N candidates, each tensor its own θ, the angle
    between the candidates' changes from the parent: of more than two, the mean cosine over all pairs. Changes at
    right angles or wider (cos θ ≤ 0) leave the parent's tensor.
    """

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        return merge_changes(candidates, step, _stock)


def _stock(changes: Tensor) -> Tensor:
    """The mean change times t."""
    count = len(changes)
    directions = F.normalize(changes.reshape(count, -1), dim=1)
    pairs = count * (count - 1) / 2
    cosine = ((directions @ directions.T).triu(1).sum() / pairs).clamp(0.0, 1.0)
    return changes.mean(0) * (count * cosine / (1.0 + (count - 1) * cosine))
