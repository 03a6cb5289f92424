"""One class out of several: cross-entropy, accuracy, calibration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from sparsekit.api import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparsekit.tasks.metrics import Tally


class Classification(Task):
    """One class for each example: cross-entropy of logits [B, K] and class numbers, int64 [B]; scored by accuracy."""

    score_name: ClassVar[str] = "accuracy"
    stratified: ClassVar[bool] = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.smoothed_loss(outputs, targets, 0.0)

    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, label_smoothing=smoothing)

    def meter(self, device: torch.device) -> Tally:
        from sparsekit.tasks.metrics import Tally  # only now: it imports torch

        return Tally(device)

    def num_outputs(self, targets: Tensor) -> int:
        return int(targets.max()) + 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() != 1 or targets.is_floating_point():
            raise ValueError(f"targets {targets.dtype} of shape {tuple(targets.shape)} are not a class number each")
        if outputs.dim() != 2 or len(outputs) != len(targets):
            raise ValueError(f"outputs of shape {tuple(outputs.shape)} are not a row of logits each")

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T² · KL(teacher ‖ model), both at temperature T, a mean over the batch (arXiv 1503.02531)."""
        from torch.nn.functional import kl_div, log_softmax

        own, other = (log_softmax(each / temperature, dim=1) for each in (outputs, teacher))
        return kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2

    def mean_outputs(self, outputs: Iterable[Tensor]) -> Tensor:
        """The logarithm of the mean probabilities."""
        return super().mean_outputs(each.softmax(1) for each in outputs).log()

    def per_example(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Whether each example is right, as `accuracy`, and its negative log likelihood, as `loss`."""
        from torch.nn.functional import cross_entropy

        right = (self.predict(outputs) == targets).to(outputs.dtype)
        return {"accuracy": right, "loss": cross_entropy(outputs, targets, reduction="none")}

    def constant_outputs(self, targets: Tensor) -> Tensor:
        """The logarithm of the classes' shares."""
        return (targets.bincount().double() / len(targets)).clamp(min=1e-9).log()

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)
