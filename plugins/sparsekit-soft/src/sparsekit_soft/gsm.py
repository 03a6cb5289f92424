"""Global sparse momentum SGD."""

from __future__ import annotations

from math import inf

from sparsekit import Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import TwoPhases, kept_count, top


class GSM(TwoPhases):
    """Gradients only where they matter most, global sparse momentum SGD (Ding et al., arXiv 1909.12778).

    Search: at every step only the weights with the largest |w · gradient|, in all layers together as many as the target
    keeps, get their gradient; the rest moves by momentum and weight decay alone, towards 0. Then the smallest
    magnitudes are masked, exactly to the target. Made for SGD with a momentum of 0.9 to 0.99.

    A weight that gets no gradient shrinks to exp(−lr · decay · steps / (1 − momentum)) of itself. The paper's runs are
    long enough for a weight decay of 5e-4 to do that; in a run of some hundred steps it does little, see `decay`.

    Args:
        search: Fraction of the budget that searches, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1.
        decay: What the search adds to `--optimizer.weight_decay` on prunable weights, 0 or more.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, search: float = 0.7, interval: float = 0.1, decay: float = 0.0) -> None:
        super().__init__(search, interval)
        check_option("method.decay", decay, 0.0 <= decay < inf, "a weight decay of 0 or more")
        self.decay = decay

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        if not self.searching(step):
            return gradients
        import torch

        total = sum(gradient.numel() for gradient in gradients.values())
        given, weights = list(gradients.values()), [step.weights[name] for name in gradients]
        active = top(torch._foreach_abs(torch._foreach_mul(weights, given)), kept_count(total, step.target))
        steered = torch._foreach_add(torch._foreach_mul(given, active), torch._foreach_mul(weights, self.decay))
        return dict(zip(gradients, steered, strict=True))
