"""Learning-compression."""

from __future__ import annotations

from math import inf

from sparsekit import Tensors, TrainingStep
from sparsekit.schedules import check_option
from sparsekit_soft._shared import TwoPhases, kept_count, top


class LC(TwoPhases):
    """Weight decay on all but the largest weights, learning-compression (Carreira-Perpiñán and Idelbayev, CVPR 2018).

    LC trains with μ/2 ‖w − θ‖², θ the weights of largest magnitude, in all layers together as many as the target keeps,
    and 0 for the rest. Here, as in the comparison of arXiv 2111.00843, μ is the weight decay: θ is chosen at every step
    and −weight_decay · w is added to its gradient, which cancels its decay. Then the smallest magnitudes are
    masked, exactly to the target. This needs decay that is part of the gradient, as SGD's is; decoupled decay
    (AdamW, LAMB) is not cancelled exactly.

    Args:
        search: Fraction of the budget that searches, above 0 and up to 1.
        interval: Fraction of the budget between two merges until then, 0.0001 to 1.
        decay: What the rest gets on top of `--optimizer.weight_decay`, 0 or more; it grows linearly from 0 over the
            search, as LC's μ grows.

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
        weights = [step.weights[name] for name in gradients]
        pull = self.decay * step.progress / self.search
        kept = kept_count(total, step.target)
        decay = top(torch._foreach_abs(weights), kept, -step.weight_decay, pull)
        steered = torch._foreach_add(list(gradients.values()), torch._foreach_mul(weights, decay))
        return dict(zip(gradients, steered, strict=True))
