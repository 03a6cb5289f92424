"""Sparse evolutionary training."""

from __future__ import annotations

from typing import Literal

from sparsekit import PruningStep, Tensors
from sparsekit_dynamic._shared import FixedSparsity, noise


class SET(FixedSparsity):
    """Sparse evolutionary training: drop the smallest weights, grow at random (Mocanu et al., arXiv 1707.04780).

    As RigL, with random growth in the gradient's place: random masks at the target sparsity by the Erdős–Rényi kernel,
    and at each change every layer drops a fraction of its kept weights, those of the smallest magnitude, and grows as
    many at random; what grows starts at 0.

    Replicas of a segment share one mask, so the topology changes only where they meet: the paper's epoch between two
    changes is a segment here (`interval`). The paper drops the same fraction every time (`decay` constant), of positive
    and negative weights apart, and draws new weights at random.

    Args:
        drop: ζ, the fraction of a layer's kept weights dropped at first, 0 to 1; 0 keeps the random masks.
        interval: Fraction of the budget between two changes, 0.0001 to 1.
        end: Fraction of the budget after which the topology stays as it is, above 0, at most 1.
        decay: `cosine` lowers the fraction to 0 at `end`, as RigL does; `constant` keeps it.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        drop: float = 0.3,
        interval: float = 0.05,
        end: float = 0.75,
        decay: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__(drop, interval, end)
        if decay not in ("cosine", "constant"):
            raise ValueError(f"--method.decay is {decay!r}; give cosine or constant")
        self.decay = decay

    def fraction(self, time: float) -> float:
        return self.drop if self.decay == "constant" else super().fraction(time)

    def growth(self, step: PruningStep) -> Tensors:
        return noise(step)
