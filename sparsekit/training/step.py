"""One optimizer step with masks held exactly, and the mean along a trajectory of steps."""

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
        """Take the parameters as they are now into the mean."""
        self.count += 1
        torch._foreach_lerp_(self.means, self.parameters, 1.0 / self.count)

    @torch.no_grad()
    def install(self) -> None:
        """Put the mean in the parameters' place."""
        if self.count:
            torch._foreach_copy_(self.parameters, self.means)


class MaskedStep:
    """One optimizer step with masks held exactly: forward and backward, then `update`.

    Whoever runs several replicas in one forward pass calls the parts; `__call__` is the whole step of one.

    Attributes:
        model: What is trained.
        weights: Its prunable weights, as the optimizer holds them.
        dense: Whether the method keeps dense weights behind the masks; nothing is masked then but the forward pass.
    """

    def __init__(
        self, setup: Setup, model: nn.Module, parent: State, extra: Tensors, optimizer: Optimizer, weight_decay: float
    ) -> None:
        self.setup, self.model, self.optimizer, self.extra = setup, model, optimizer, extra
        self.target, self.weight_decay = parent.target, weight_decay
        self.weights: Tensors = {n: p for n, p in model.named_parameters() if n in parent.masks}
        # masks in the weights' type and memory order, or the fused multiplication is slow
        self.masks = {name: torch.empty_like(w).copy_(parent.masks[name]) for name, w in self.weights.items()}
        self.masked = list(self.weights.values()), list(self.masks.values())
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.dense = has_dense_weights(setup.method)
        self.penalised = type(setup.method).penalty is not PruningMethod.penalty
        self.steered = type(setup.method).gradients is not PruningMethod.gradients
        self.forward = setup.forward if setup.team.size == 1 else setup.team.forward(model, setup.forward)
        # fp16 gradients underflow; for other types the scaler does nothing
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.dtype == torch.float16)

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        now = self.at(progress)
        with self.setup.autocast():
            logits = self.forward(self.model, self.effective(now), images)
        loss = self.setup.loss(logits, labels, images)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(loss, now).backward()  # type: ignore[no-untyped-call]
        if self.setup.team.size > 1:  # the model's own are averaged already
            self.setup.team.average([tensor.grad for tensor in self.extra.values() if tensor.grad is not None])
        self.update(now)
        return loss.detach()

    def at(self, progress: float) -> TrainingStep:
        """What the method is told of a step at a fraction of the budget."""
        return TrainingStep(self.weights, self.masks, self.extra, progress, self.target, self.weight_decay)

    def effective(self, now: TrainingStep) -> Tensors:
        """The weights that the forward pass uses in the place of the model's own; none where those are masked."""
        return self.setup.method.effective(now) if self.dense else {}

    def objective(self, loss: Tensor, now: TrainingStep) -> Tensor:
        """What is differentiated: the loss with the method's penalty, scaled where the precision needs it."""
        penalty = self.setup.method.penalty(now) if self.penalised else None
        return self.scaler.scale(loss if penalty is None else loss + penalty)

    def update(self, now: TrainingStep) -> None:
        """Move the weights by their gradients."""
        clip_norm = self.setup.config.optimizer.clip_norm
        self.scaler.unscale_(self.optimizer)
        if not self.dense:
            self._mask_gradients()
        if self.steered:
            self._steer(now)
            if not self.dense:
                self._mask_gradients()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.dense:
            self._mask_weights()

    @torch.no_grad()
    def _steer(self, now: TrainingStep) -> None:
        """Let the method change the gradients."""
        given = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        for name, grad in self.setup.method.gradients(now, given).items():
            self.weights[name].grad = optimizers.match_memory_format(self.weights[name], grad)

    def _mask_gradients(self) -> None:
        """No gradient, and so no momentum, for what is pruned."""
        pairs = [(w.grad, self.masks[name]) for name, w in self.weights.items() if w.grad is not None]
        torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Some optimizers move weights that have no gradient."""
        torch._foreach_mul_(*self.masked)
