"""An optimizer step that keeps masked weights at exactly 0, and the mean of weights along the trajectory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, TrainingStep
from sparsekit.models.state import State, has_dense_weights
from sparsekit.training import optimizers
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


class MaskedStep:
    """An optimizer step that keeps masked weights at exactly 0: forward and backward pass, then `update`.

    `__call__` takes a complete step; the stacked executor calls the parts, as its replicas share one forward pass.

    Attributes:
        model: The model that is trained.
        weights: Its prunable weights, as the optimizer holds them.
        dense: Whether the method keeps dense weights behind the masks; then only the forward pass is masked.
    """

    def __init__(
        self, setup: Setup, model: nn.Module, parent: State, extra: Tensors, optimizer: Optimizer, weight_decay: float
    ) -> None:
        self.setup, self.model, self.optimizer, self.extra = setup, model, optimizer, extra
        self.target, self.weight_decay = parent.target, weight_decay
        self.weights: Tensors = {n: p for n, p in model.named_parameters() if n in parent.masks}
        # masks in the weights' type and memory format, or the fused multiplication is slow
        self.masks = {name: torch.empty_like(w).copy_(parent.masks[name]) for name, w in self.weights.items()}
        self.masked = list(self.weights.values()), list(self.masks.values())
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.dense = has_dense_weights(setup.method)
        self.penalised = type(setup.method).penalty is not PruningMethod.penalty
        self.changes_gradients = type(setup.method).gradients is not PruningMethod.gradients
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

    def at(self, progress: float) -> TrainingStep:
        """The `TrainingStep` for the method's hooks, at a fraction of the budget."""
        return TrainingStep(self.weights, self.masks, self.extra, progress, self.target, self.weight_decay)

    def effective(self, step: TrainingStep) -> Tensors:
        """The weights that replace the model's own in the forward pass; empty if the model's own are masked."""
        return self.setup.method.effective(step) if self.dense else {}

    def objective(self, loss: Tensor, step: TrainingStep) -> Tensor:
        """The loss to differentiate: with the method's penalty, and scaled for fp16."""
        penalty = self.setup.method.penalty(step) if self.penalised else None
        return self.scaler.scale(loss if penalty is None else loss + penalty)

    def update(self, step: TrainingStep) -> None:
        """Mask and clip the gradients, step the optimizer, and mask the weights."""
        clip_norm = self.setup.config.optimizer.clip_norm
        self.scaler.unscale_(self.optimizer)
        if not self.dense:
            self._mask_gradients()
        if self.changes_gradients:
            self._change_gradients(step)
            if not self.dense:
                self._mask_gradients()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        # torch's scaler asks for this attribute, which torch's optimizers have where `fused` is an argument
        self.optimizer._step_supports_amp_scaling = optimizers.skips_overflow(self.optimizer)  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.dense:
            self._mask_weights()

    @torch.no_grad()
    def _change_gradients(self, step: TrainingStep) -> None:
        """Let the method change the gradients of the prunable weights."""
        gradients = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        for name, grad in self.setup.method.gradients(step, gradients).items():
            self.weights[name].grad = optimizers.match_memory_format(self.weights[name], grad)

    def _mask_gradients(self) -> None:
        """Zero the gradients of pruned weights, so that they gather no momentum."""
        pairs = [(w.grad, self.masks[name]) for name, w in self.weights.items() if w.grad is not None]
        torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Zero the pruned weights: some optimizers move weights whose gradient is 0."""
        torch._foreach_mul_(*self.masked)
