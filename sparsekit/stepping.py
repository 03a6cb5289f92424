"""One optimizer step with masks held exactly, and the mean along a trajectory of steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from sparsekit import states
from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, TrainingStep
from sparsekit.setup import Setup
from sparsekit.states import State


class TrajectoryMean:
    """The running mean of parameters over optimizer steps (SWA, arXiv 1803.05407)."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.count = parameters, 0
        self.means = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the mean."""
        self.count += 1
        torch._foreach_lerp_(self.means, self.parameters, 1.0 / self.count)

    @torch.no_grad()
    def install(self) -> None:
        """Put the mean in the parameters' place."""
        if self.count:
            torch._foreach_copy_(self.parameters, self.means)


class MaskedStep:
    """One optimizer step with masks held exactly."""

    def __init__(self, setup: Setup, parent: State, extra: Tensors, optimizer: Optimizer, weight_decay: float) -> None:
        self.setup, self.optimizer, self.extra, self.weight_decay = setup, optimizer, extra, weight_decay
        self.weights: Tensors = {n: p for n, p in setup.model.named_parameters() if n in parent.masks}
        # masks in the weights' type and memory order, or the fused multiplication is slow
        self.masks = {name: torch.empty_like(w).copy_(parent.masks[name]) for name, w in self.weights.items()}
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.target = parent.target
        self.dense = states.keeps_dense(setup.method)
        self.penalised = type(setup.method).penalty is not PruningMethod.penalty
        self.steered = type(setup.method).gradients is not PruningMethod.gradients

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        config, method = self.setup.config, self.setup.method
        now = TrainingStep(self.weights, self.masks, self.extra, progress, self.target, self.weight_decay)
        with self.setup.autocast():
            logits = self._forward(images, now)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        penalty = method.penalty(now) if self.penalised else None
        self.optimizer.zero_grad(set_to_none=True)
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        if not self.dense:
            self._mask_gradients()
        if self.steered:
            self._steer(now)
            if not self.dense:
                self._mask_gradients()
        if config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.optimizer.clip_norm)
        self.optimizer.step()
        if not self.dense:
            self._mask_weights()
        return loss.detach()

    def _forward(self, images: Tensor, now: TrainingStep) -> Tensor:
        model = self.setup.model
        if not self.dense:
            return model(images)  # type: ignore[no-any-return]
        return functional_call(model, self.setup.method.effective(now), (images,))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _steer(self, now: TrainingStep) -> None:
        """Let the method change the gradients."""
        given = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        for name, grad in self.setup.method.gradients(now, given).items():
            self.weights[name].grad = grad

    def _mask_gradients(self) -> None:
        """No gradient, and so no momentum, for what is pruned."""
        pairs = [(w.grad, self.masks[name]) for name, w in self.weights.items() if w.grad is not None]
        torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Some optimizers move weights that have no gradient."""
        torch._foreach_mul_(list(self.weights.values()), list(self.masks.values()))
