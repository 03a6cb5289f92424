"""Budgeted iterative magnitude pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sparsekit.api import Budget
from sparsekit.methods.imp import IMP
from sparsekit.schedules import Retraining


class BIMP(IMP):
    """Budgeted IMP: dense training and all cycles inside the budget of one training (Zimmer et al., arXiv 2111.00843).

    The learning rate falls linearly to 0 in the dense phase too; in the cycles it depends on the pruning (ALLR). That
    it can adapt, a cycle must be much shorter than the dense phase: their ratio is ALLR's lower bound.

    Args:
        dense: Fraction of the budget for training the dense model.
        cycles: Number of prune-retrain cycles that share the rest.
        retrain: Learning rate of a cycle: `lrw`, `slr`, `clr`, `llr` or `allr`; the last rate, which `ft` keeps, is 0.
    """

    _not_zero: ClassVar[str] = "choose lrw, slr, clr, llr or allr, or --method imp"

    def __init__(self, dense: float = 0.6, cycles: int = 3, retrain: Retraining = "allr") -> None:
        super().__init__(dense, cycles, retrain)

    def original(self, budget: Budget) -> Budget:
        """Linear to 0 after `--optimizer.warmup`, whatever `--optimizer.schedule` is."""
        return replace(budget, decay=lambda done: 1.0 - done)
