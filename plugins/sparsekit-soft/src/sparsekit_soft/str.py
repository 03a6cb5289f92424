"""Soft threshold weight reparameterisation."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit._types import Tensor
from sparsekit_soft._shared import TwoPhases, check_option, wanted_density


class STR(TwoPhases):
    def __init__(self, search: float = 0.7, interval: float = 0.1, init: float = -5.0, pressure: float = 0.2, gate: bool = False) -> None:
        super().__init__(search, interval)
        self.init, self.pressure, self.gate = init, pressure, gate

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_tensor(self.init) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        soft = {}
        for name, weight in step.weights.items():
            shrunk = weight.sign() * (weight.abs() - step.extra[name].sigmoid()).relu()
            if not self.searching(step):  # straight through, so that a kept weight below its threshold can still grow
                shrunk = weight + (shrunk - weight).detach()
            soft[name] = shrunk * step.masks[name]
        return soft

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        kept = sum((w.detach().abs() > step.extra[n].detach().sigmoid()).sum() for n, w in step.weights.items())
        total = sum(w.numel() for w in step.weights.values())
        lag = (kept / total - wanted_density(step, self.search)).relu()
        if self.gate: lag = (lag>0).float()
        return 0.5 * self.pressure * lag * sum(s.square() for s in step.extra.values())

    def scores(self, step: PruningStep) -> Tensors:
        return {name: weight.abs() - step.extra[name].sigmoid() for name, weight in step.weights.items()}
