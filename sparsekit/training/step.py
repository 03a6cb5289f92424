"""An optimizer step that keeps masked weights at exactly 0, and the mean of weights along the trajectory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit._types import Tensors
from sparsekit.api import TrainingStep
from sparsekit.models.state import State
from sparsekit.training import optimizers
from sparsekit.training.masking import Masking
from sparsekit.training.setup import Setup


class TrajectoryMean:
    """The running mean of parameters over optimizer steps (SWA, arXiv 1803.05407)."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.count = parameters, 0
        self.means = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the mean."""
        self.count += 1
        torch._foreach_lerp_(self.means, self.parameters, 1.0 / self.count)

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
    """

    def __init__(
        self, setup: Setup, model: nn.Module, parent: State, extra: Tensors, optimizer: Optimizer, weight_decay: float
    ) -> None:
        weights: Tensors = {n: p for n, p in model.named_parameters() if n in parent.masks}
        super().__init__(setup.method, weights, parent.masks, extra, parent.target, weight_decay)
        self.setup, self.model, self.optimizer = setup, model, optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.forward = setup.forward if setup.team.size == 1 else setup.team.forward(model, setup.forward)
        # fp16 gradients underflow; for other types the scaler does nothing
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.dtype == torch.float16)

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
        return self.method.effective(step) if self.dense else {}

    def objective(self, loss: Tensor, step: TrainingStep) -> Tensor:
        """The loss to differentiate: with the method's penalty, and scaled for fp16."""
        penalty = self.penalty(step)
        return self.scaler.scale(loss if penalty is None else loss + penalty)

    def update(self, step: TrainingStep) -> None:
        """Mask and clip the gradients, step the optimizer, and mask the weights."""
        clip_norm = self.setup.config.optimizer.clip_norm
        self.scaler.unscale_(self.optimizer)
        self.prepare_gradients(step)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        # torch's scaler asks for this attribute, which torch's optimizers have where `fused` is an argument
        self.optimizer._step_supports_amp_scaling = optimizers.skips_overflow(self.optimizer)  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.mask_weights()
