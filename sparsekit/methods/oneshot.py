"""One-shot magnitude pruning."""

from __future__ import annotations

from sparsekit.methods.imp import IMP
from sparsekit.schedules import Retraining


class OneShot(IMP):
    """Train dense, prune once to the target, retrain (Le and Hua, arXiv 2105.03193, for the schedules).

    Args:
        dense: Fraction of the budget for training the dense model on the whole original schedule.
        retrain: Learning rate of the retraining: `ft`, `lrw`, `slr`, `clr`, `llr` or `allr`.
    """

    def __init__(self, dense: float = 0.5, retrain: Retraining = "llr") -> None:
        super().__init__(dense, 1, retrain)
