"""Rigging the lottery."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors
from sparsekit_dynamic._shared import FixedSparsity, check_batches


class RigL(FixedSparsity):
    """RigL: drop the smallest weights, grow those of the largest gradient (Evci et al., arXiv 1911.11134).

    Training is sparse from the first step: random masks at the target sparsity, shared out between layers by the
    Erdős–Rényi kernel (`--masks.allocation erk`). At each change every layer drops the fraction
    α/2 · (1 + cos(π t / T_end)) of its kept weights, those of the smallest magnitude, and grows as many where the dense
    gradient is largest; what grows starts at 0.

    Replicas of a segment share one mask, so the topology changes only where they meet: the paper's interval of 100
    steps is a segment here (`interval`), and the gradient is the merged model's.

    Args:
        drop: α, the fraction of a layer's kept weights dropped at first, 0 to 1; 0 keeps the random masks.
        interval: Fraction of the budget between two changes, 0.0001 to 1.
        end: T_end, the fraction of the budget after which the topology stays as it is, above 0, at most 1.
        batches: Training batches over which the gradient is averaged, 1 to 1000 (the paper: 1).

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, drop: float = 0.3, interval: float = 0.05, end: float = 0.75, batches: int = 1) -> None:
        super().__init__(drop, interval, end)
        check_batches(batches)
        self.batches = batches

    def growth(self, step: PruningStep) -> Tensors:
        return step.gradients(self.batches)
