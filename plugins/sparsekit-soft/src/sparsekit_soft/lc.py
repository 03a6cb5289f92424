"""Learning-compression."""

from __future__ import annotations

from sparsekit import Tensors, TrainingStep
from sparsekit_soft._shared import TwoPhases, check_option, top


class LC(TwoPhases):
    def __init__(self, search: float = 0.7, interval: float = 0.1, decay: float = 0.02) -> None:
        super().__init__(search, interval)
        check_option("decay", decay, 0.0 <= decay <= 10.0, "a weight decay from 0 to 10")
        self.decay = decay

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        if not self.searching(step):
            return gradients
        kept = top({name: step.weights[name].abs() for name in gradients}, step.target)
        pull = self.decay * step.progress / self.search
        return {
            n: grad + (pull * (1.0 - kept[n]) - step.weight_decay * kept[n]) * step.weights[n]
            for n, grad in gradients.items()
        }
