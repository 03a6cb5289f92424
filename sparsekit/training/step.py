"""An optimizer step that keeps masked weights at exactly 0, and the mean of weights along the trajectory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit._types import Tensors
from sparsekit.api import TrainingStep
from sparsekit.errors import RunError
from sparsekit.models.state import State
from sparsekit.training import optimizers
from sparsekit.training.masking import Masking
from sparsekit.training.setup import Setup


class TrajectoryMean:
    """The running mean of parameters over optimizer steps (SWA, arXiv 1803.05407), exponential with a decay below 1."""

    def __init__(self, parameters: list[Tensor], decay: float = 1.0) -> None:
        self.parameters, self.decay, self.count = parameters, decay, 0
        self.means = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the mean."""
        self.count += 1
        torch._foreach_lerp_(self.means, self.parameters, max(1.0 / self.count, 1.0 - self.decay))

    @torch.no_grad()
    def install(self) -> None:
        """Replace the parameters by their mean; does nothing before the first update."""
        if self.count:
            torch._foreach_copy_(self.parameters, self.means)


class MaskedStep(Masking):
    """An optimizer step that keeps masked weights at exactly 0: forward and backward pass, then `update`.

    `__call__` takes a complete step; the stacked executor calls the parts, as its replicas share one forward pass.

    Attributes:
        model: The model that is trained.
        used: The weights that replaced the model's own in the last forward pass.
    """

    def __init__(
        self, setup: Setup, model: nn.Module, parent: State, extra: Tensors, optimizer: Optimizer, weight_decay: float
    ) -> None:
        weights: Tensors = {n: p for n, p in model.named_parameters() if n in parent.masks}
        beside: Tensors = {n: p for n, p in model.named_parameters() if n in parent.beside}
        super().__init__(setup.method, weights, parent.masks, extra, parent.target, weight_decay, beside, parent.beside)
        self.setup, self.model, self.optimizer = setup, model, optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.forward = setup.forward if setup.team.size == 1 else setup.team.forward(model, setup.forward)
        # fp16 gradients underflow; for other types the scaler does nothing
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.dtype == torch.float16)
        self.used: Tensors = {}

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        step = self.at(progress)
        with self.setup.autocast():
            logits = self.forward(self.model, self.effective(step), images)
        loss = self.setup.loss(logits, labels, images)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(loss, step).backward()  # type: ignore[no-untyped-call]
        if self.setup.team.size > 1:  # DistributedDataParallel averages the gradients of the model's parameters only
            self.setup.team.average([tensor.grad for tensor in self.extra.values() if tensor.grad is not None])
        self.update(step)
        return loss.detach()

    def effective(self, step: TrainingStep) -> Tensors:
        """The weights that replace the model's own in the forward pass; empty if the model's own are masked."""
        # a penalty's gradient is not the loss's: only weights of their own keep both apart
        if self.dense or (self.updates and self.penalised):
            self.used = self.method.effective(step)
        for tensor in self.used.values() if self.updates else ():
            tensor.retain_grad()
        return {**self.used, **self.effective_beside()} if self.dense else self.used

    def objective(self, loss: Tensor, step: TrainingStep) -> Tensor:
        """The loss to differentiate: with the method's penalty, and scaled for fp16."""
        penalty = self.penalty(step)
        return self.scaler.scale(loss if penalty is None else loss + penalty)

    def update(self, step: TrainingStep) -> None:
        """Mask and clip the gradients, step the optimizer, and mask the weights."""
        clip_norm = self.setup.config.optimizer.clip_norm
        self.scaler.unscale_(self.optimizer)
        updated = self._updated(step) if self.updates else {}
        self.prepare_gradients(step)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        # torch's scaler asks for this attribute, which torch's optimizers have where `fused` is an argument
        self.optimizer._step_supports_amp_scaling = optimizers.skips_overflow(self.optimizer)  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.mask_weights()
        if updated:
            torch._foreach_copy_([self.extra[name] for name in updated], [*updated.values()])

    @torch.no_grad()
    def _updated(self, step: TrainingStep) -> Tensors:
        """The values that the method gives to its own tensors; the old ones where fp16's gradients overflowed.

        Raises:
            RunError: a value belongs to no tensor that the method itself changes, or has another shape.
        """
        gradients = {name: t.grad for name, t in (self.used or self.weights).items() if t.grad is not None}
        if self.used:
            if self.setup.team.size > 1:
                self.setup.team.average([*gradients.values()])
            if self.scaler.is_enabled():
                scale = self.scaler.scale(torch.ones((), device=self.setup.device))
                gradients = dict(zip(gradients, torch._foreach_mul([*gradients.values()], 1.0 / scale), strict=True))
        found = self.method.update(step, gradients)
        where = f"method {type(self.method).__name__}: update()"
        for name, value in found.items():
            if name not in self.extra or self.extra[name].requires_grad:
                raise RunError(
                    f"{where} gives {name!r}, which is no tensor of extra() that extra_trained() leaves to it"
                )
            if value.shape != self.extra[name].shape:
                shapes = f"{tuple(value.shape)}, not {tuple(self.extra[name].shape)}"
                raise RunError(f"{where} gives {name!r} the shape {shapes}")
        if self.scaler.is_enabled():
            fine = torch.stack(torch._foreach_norm([*gradients.values()], math.inf)).isfinite().all()
            found = {name: torch.where(fine, value, self.extra[name]) for name, value in found.items()}
        return found
