"""Discovering neural wirings."""

from __future__ import annotations

from sparsekit import Tensors, TrainingStep
from sparsekit_soft._shared import TwoPhases, top


class DNW(TwoPhases):
    """Discovering neural wirings (Wortsman et al., arXiv 1906.00586).

    Every forward pass uses the weights of largest magnitude only, as many in all layers together as the target keeps;
    the gradient there goes straight through to all weights, so that what is left out can come back at the next step.
    The mask is fixed for the last stretch.

    Args:
        search: Fraction of the budget in which every forward pass chooses anew.
        interval: Fraction of the budget between two merges until then; a merge averages the dense weights.
    """

    def __init__(self, search: float = 0.8, interval: float = 0.1) -> None:
        super().__init__(search, interval)

    def effective(self, step: TrainingStep) -> Tensors:
        if not self.searching(step):
            return super().effective(step)
        chosen = top({name: weight.detach().abs() for name, weight in step.weights.items()}, step.target)
        # w + (w⊙m − w) is exactly w or 0, and its gradient reaches every weight
        return {n: w + (w * chosen[n] * step.masks[n] - w).detach() for n, w in step.weights.items()}
