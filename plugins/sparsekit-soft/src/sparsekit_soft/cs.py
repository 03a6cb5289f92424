"""Continuous sparsification."""

from __future__ import annotations

from math import exp

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit._types import Tensor
from sparsekit_soft._shared import TwoPhases, check_option, wanted_density


class CS(TwoPhases):
    def __init__(self, search: float = 0.7, interval: float = 0.1, init: float = 0.0, beta: float = 200.0, lam: float = 1e-3, gate: str = "target") -> None:
        super().__init__(search, interval)
        self.init, self.beta, self.lam, self.gate = init, beta, lam, gate

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_full(weight.shape, self.init) for name, weight in weights.items()}

    def temperature(self, step):
        return self.beta ** min(step.progress / self.search, 1.0)

    def effective(self, step: TrainingStep) -> Tensors:
        scale = 1.0 + exp(-self.init)
        if not self.searching(step):
            return {n: scale * w * step.masks[n] for n, w in step.weights.items()}
        beta = self.temperature(step)
        return {n: scale * w * (beta * step.extra[n]).sigmoid() * step.masks[n] for n, w in step.weights.items()}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        beta = self.temperature(step)
        kept = sum((m.detach() > 0).sum() for m in step.extra.values())
        total = sum(w.numel() for w in step.weights.values())
        if self.gate == "target":
            g = (kept > (1-step.target)*total).float()
        elif self.gate == "ramp":
            g = (kept > wanted_density(step, self.search)*total).float()
        elif self.gate == "both":
            g = (kept > wanted_density(step, self.search)*total).float()*2-1
        elif self.gate == "prop":
            g = (kept/total - wanted_density(step, self.search))
        else: g=1.
        return self.lam * g * sum((beta * m).sigmoid().sum() for m in step.extra.values())

    def scores(self, step: PruningStep) -> Tensors:
        return {name: step.extra[name] for name in step.weights}
