"""Dynamic sparse training."""

from __future__ import annotations

from sparsekit import PruningStep, Tensors, TrainingStep
from sparsekit._types import Tensor
from sparsekit_soft._shared import TwoPhases, check_option, wanted_density


class DST(TwoPhases):
    def __init__(self, search: float = 0.7, interval: float = 0.1, alpha: float = 1e-3, reset: float = 0.01, gate: bool = True) -> None:
        super().__init__(search, interval)
        self.alpha, self.reset, self.gate = alpha, reset, gate

    def extra(self, weights: Tensors) -> Tensors:
        return {name: weight.new_zeros(len(weight)) for name, weight in weights.items()}

    def effective(self, step: TrainingStep) -> Tensors:
        if not self.searching(step):
            return super().effective(step)
        soft = {}
        for name, weight in step.weights.items():
            over = margin(weight, step.extra[name])
            empty = (over > 0).to(weight.dtype).mean() <= self.reset
            over = over.where(~empty, weight.abs())
            gap = over.detach().abs()
            slope = (2.0 - 4.0 * gap).where(gap <= 0.4, 0.4) * (gap <= 1.0)
            gate = (over.detach() > 0) + slope * (over - over.detach())
            soft[name] = weight * gate * step.masks[name]
        return soft

    def penalty(self, step: TrainingStep) -> Tensor | None:
        if not self.searching(step):
            return None
        kept = sum((margin(w, step.extra[n]).detach() > 0).sum() for n, w in step.weights.items())
        total = sum(w.numel() for w in step.weights.values())
        lag = (kept / total - wanted_density(step, self.search)).relu()
        if self.gate: lag = (lag>0).float()
        return self.alpha * lag * sum((-t).exp().sum() for t in step.extra.values())

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        if self.searching(step):
            for name, weight in step.weights.items():
                kept = (margin(weight, step.extra[name]) > 0).to(weight.dtype).mean()
                step.extra[name].mul_(kept > self.reset)
        return gradients

    def scores(self, step: PruningStep) -> Tensors:
        peak = max(w.abs().max() for w in step.weights.values())
        return {n: w.abs().where(margin(w, step.extra[n]) > 0, w.abs() - peak) for n, w in step.weights.items()}


def margin(weight: Tensor, threshold: Tensor) -> Tensor:
    return weight.abs() - threshold.view(-1, *[1] * (weight.dim() - 1))
