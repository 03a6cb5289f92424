"""What holds pruned weights at exactly 0 in training, whoever steps the optimizer, and calls a method's hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, TrainingStep
from sparsekit.models.state import has_dense_weights
from sparsekit.training import optimizers


class Masking:
    """A segment's masks over the weights of a model in training.

    Attributes:
        weights: The prunable weights, as the optimizer holds them.
        masks: 1 keeps and 0 prunes, in the weights' types and memory formats.
        all_masks: The same, with those of norms and biases that lose elements with whole channels.
        dense: Whether the method keeps dense weights behind the masks; then only the forward pass is masked.
        penalised: Whether the method adds to the loss.
        changes_gradients: Whether the method changes gradients.
        updates: Whether the method gives its own tensors new values.
        generator: What hooks draw from; None without hooks.
        replica: The replica's index in its segment; None where there are no replicas.

    Args:
        method: The pruning method.
        weights: The prunable weights.
        masks: Their masks, bool, True keeps.
        extra: The method's own tensors.
        target: Final sparsity, 0 to 1.
        weight_decay: The weight decay of the prunable weights.
        beside: Norms and biases that lose elements with whole channels.
        masks_beside: Their masks, bool, True keeps.
    """

    def __init__(
        self,
        method: PruningMethod,
        weights: Tensors,
        masks: Tensors,
        extra: Tensors,
        target: float,
        weight_decay: float,
        beside: Tensors | None = None,
        masks_beside: Tensors | None = None,
    ) -> None:
        self.method, self.weights, self.extra = method, weights, extra
        self.target, self.weight_decay = target, weight_decay
        # masks in the weights' type and memory format, or the fused multiplication is slow
        self.masks = {name: torch.empty_like(w).copy_(masks[name].to(w.device)) for name, w in weights.items()}
        self._beside = [
            (name, p, torch.empty_like(p).copy_((masks_beside or {})[name].to(p.device)))
            for name, p in (beside or {}).items()
        ]
        others, theirs = [p for _, p, _ in self._beside], [mask for _, _, mask in self._beside]
        self.all_masks = {**self.masks, **{name: mask for name, _, mask in self._beside}}
        self.masked = [*self.weights.values(), *others], [*self.masks.values(), *theirs]
        self.dense = has_dense_weights(method)
        self.penalised = type(method).penalty is not PruningMethod.penalty
        self.changes_gradients = type(method).gradients is not PruningMethod.gradients
        self.updates = type(method).update is not PruningMethod.update
        self.generator: torch.Generator | None = None
        self.replica: int | None = None

    @property
    def hooked(self) -> bool:
        """Whether the method has a hook in training."""
        return self.dense or self.penalised or self.changes_gradients or self.updates

    def at(self, progress: float) -> TrainingStep:
        """The `TrainingStep` for the method's hooks, at a fraction of the budget."""
        own = self.target, self.weight_decay, self.generator, self.replica
        return TrainingStep(self.weights, self.masks, self.extra, progress, *own)

    def effective_beside(self) -> Tensors:
        """The norms and biases that the forward pass uses, where dense ones stand behind their masks."""
        return {name: p * mask for name, p, mask in self._beside}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        """The method's term of the loss; None if it has none."""
        return self.method.penalty(step) if self.penalised else None

    def prepare_gradients(self, step: TrainingStep) -> None:
        """Mask the gradients, and let the method change them."""
        if not self.dense:
            self._mask_gradients()
        if self.changes_gradients:
            self._change_gradients(step)
            if not self.dense:
                self._mask_gradients()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero the pruned weights: some optimizers move weights whose gradient is 0."""
        if not self.dense:
            torch._foreach_mul_(*self.masked)

    @torch.no_grad()
    def _change_gradients(self, step: TrainingStep) -> None:
        """Let the method change the gradients of the prunable weights."""
        gradients = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        for name, grad in self.method.gradients(step, gradients).items():
            self.weights[name].grad = optimizers.match_memory_format(self.weights[name], grad)

    def _mask_gradients(self) -> None:
        """Zero the gradients of pruned weights, so that they gather no momentum."""
        pairs = [(w.grad, mask) for w, mask in zip(*self.masked, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])
