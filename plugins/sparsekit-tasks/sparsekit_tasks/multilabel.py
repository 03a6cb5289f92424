"""Several labels for each example."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from sparsekit.api import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Multilabel(Task):
    """Any number of labels for each example: binary cross-entropy of logits and 0 or 1, [N, K]; scored by mAP.

    mAP is the mean of the labels' average precisions; a label that no example has does not count.
    """

    score_name: ClassVar[str] = "mAP"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.smoothed_loss(outputs, targets, 0.0)

    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype) * (1.0 - smoothing) + smoothing / 2.0
        )

    def meter(self, device: torch.device) -> LabelMeter:
        return LabelMeter(device)

    def num_outputs(self, targets: Tensor) -> int:
        return targets.shape[1] if targets.dim() > 1 else 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() != 2 or not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError("targets must be a row of 0 and 1 each, one for every label")
        if outputs.shape != targets.shape:
            raise ValueError(f"there must be {targets.shape[1]} logits each")

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T² · KL(teacher ‖ model) of each label's two probabilities, both at temperature T, a mean over all."""
        from torch.nn.functional import logsigmoid

        own, other = outputs / temperature, teacher / temperature
        yes = other.sigmoid() * (logsigmoid(other) - logsigmoid(own))
        no = (-other).sigmoid() * (logsigmoid(-other) - logsigmoid(-own))
        return (yes + no).mean() * temperature**2

    def mean_outputs(self, outputs: Iterable[Tensor]) -> Tensor:
        """The logits of the mean probabilities."""
        from torch import logaddexp
        from torch.nn.functional import logsigmoid

        members = iter(outputs)
        first = next(members)
        yes, no = logsigmoid(first), logsigmoid(-first)
        for each in members:
            yes, no = logaddexp(yes, logsigmoid(each)), logaddexp(no, logsigmoid(-each))
        return yes - no

    def per_example(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The mean loss over the labels of each example, as `loss`."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        losses = binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return {"loss": losses.mean(1)}

    def constant_outputs(self, targets: Tensor) -> Tensor:
        """The logits of the labels' shares."""
        return targets.double().mean(0).logit(1e-9)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs > 0


class LabelMeter:
    """mAP, F1 (both means over labels) and the share of examples with every label right, by torchmetrics.

    Args:
        device: The device of the outputs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._metrics: dict[str, Any] = {}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: logits and labels of 0 or 1, [N, K]."""
        from torchmetrics import classification as measures

        if not self._metrics:
            options: dict[str, Any] = {"num_labels": outputs.shape[1], "validate_args": False}  # checks would wait
            self._metrics = {
                "mAP": measures.MultilabelAveragePrecision(average="none", **options).to(self._device),
                "F1": measures.MultilabelF1Score(**options).to(self._device),
                "subset_accuracy": measures.MultilabelExactMatch(**options).to(self._device),
            }
            self._examples = targets.new_zeros(outputs.shape[1])
        self._examples = self._examples + targets.sum(0)
        for metric in self._metrics.values():
            metric.update(outputs.sigmoid(), targets.long())

    def compute(self) -> dict[str, Any]:
        """The measures, and `label_AP`, each label's average precision, as a list; None for one without examples."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels without examples, which do not count here
            found = {name: metric.compute() for name, metric in self._metrics.items()}
        pairs = zip(found["mAP"].flatten().tolist(), self._examples.tolist(), strict=True)
        values = [value if examples else None for value, examples in pairs]
        known = [value for value in values if value is not None]
        return found | {"mAP": sum(known) / len(known) if known else float("nan"), "label_AP": values}
