"""One class for each pixel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from sparsekit.api import Task
from sparsekit.schedules import check_option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_NO_LABEL = -(1 << 62)
"""What torch ignores where nothing is to be ignored; -1 or -100 could be in the data."""


class Segmentation(Task):
    """One class for each pixel: cross-entropy of logits [N, C, H, W] and labels [N, H, W]; scored by mean_IoU.

    mean_IoU is the mean over classes of intersection over union, counted over all pixels of a split; a class that is
    neither there nor predicted does not count.

    Args:
        ignore: A label that marks pixels that do not count, such as 255; by default every pixel counts.
        classes: Number of classes, 1 or more; by default as many as the labels of the first batch tell.

    Raises:
        ValueError: an option out of its range.
    """

    score_name: ClassVar[str] = "mean_IoU"

    def __init__(self, ignore: int | None = None, classes: int | None = None) -> None:
        check_option("task.classes", classes or 0, classes is None or classes >= 1, "1 or more")
        self.ignore, self.classes = ignore, classes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.smoothed_loss(outputs, targets, 0.0)

    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The mean over all pixels of the batch that count; 0 where none does."""
        from torch.nn.functional import cross_entropy

        unused = _NO_LABEL if self.ignore is None else self.ignore
        targets = targets.long()
        total = cross_entropy(outputs, targets, ignore_index=unused, reduction="sum", label_smoothing=smoothing)
        return total / (targets != unused).sum().clamp(min=1)

    def meter(self, device: torch.device) -> OverlapMeter:
        return OverlapMeter(self.ignore)

    def num_outputs(self, targets: Tensor) -> int:
        if self.classes is not None:
            return self.classes
        return int(max(self._counted(targets).flatten().tolist(), default=0)) + 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() != 3 or targets.is_floating_point() or targets.is_complex():
            raise ValueError("targets must be a class number for each pixel, [N, H, W]")
        if outputs.dim() != 4 or (len(outputs), *outputs.shape[2:]) != targets.shape:
            raise ValueError("outputs must be logits for each pixel, [N, classes, H, W]")
        if self.classes not in (None, outputs.shape[1]):
            raise ValueError(f"--task.classes is {self.classes}, but there are logits for {outputs.shape[1]}")
        counted = self._counted(targets)
        if wrong := counted[(counted < 0) | (counted >= outputs.shape[1])].tolist():
            raise ValueError(f"there is a label {wrong[0]}; --task.ignore names one that does not count")

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T² · KL(teacher ‖ model), both at temperature T, a mean over all pixels, those of `ignore` too."""
        from torch.nn.functional import kl_div, log_softmax

        own, other = (log_softmax(each / temperature, dim=1) for each in (outputs, teacher))
        return kl_div(own, other, reduction="none", log_target=True).sum(1).mean() * temperature**2

    def mean_outputs(self, outputs: Iterable[Tensor]) -> Tensor:
        """The logarithm of the mean probabilities."""
        return super().mean_outputs(each.softmax(1) for each in outputs).log()

    def constant_outputs(self, targets: Tensor) -> Tensor:
        """The logarithm of the labels' shares at each pixel."""
        from torch import stack

        counts = stack([(targets == label).sum(0) for label in range(self.num_outputs(targets))]).double()
        if self.ignore is not None and 0 <= self.ignore < len(counts):
            counts[self.ignore] = 0.0
        return (counts / counts.sum(0).clamp(min=1.0)).clamp(min=1e-9).log()

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def _counted(self, targets: Tensor) -> Tensor:
        """The labels that count."""
        return targets if self.ignore is None else targets[targets != self.ignore]


class OverlapMeter:
    """Intersection over union, and the share of pixels that are right, from a confusion matrix.

    torchmetrics' matrix counts by `bincount`, and would wait for the device at every batch.

    Args:
        ignore: The label of pixels that do not count.
    """

    def __init__(self, ignore: int | None) -> None:
        self._ignore, self._classes = ignore, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, C, H, W] and labels [N, H, W]."""
        targets = targets.long()
        if not self._classes:
            self._classes = outputs.shape[1]
            self._counts = targets.new_zeros(self._classes**2 + 1)  # the last one is of pixels that do not count
        pairs = targets * self._classes + outputs.argmax(1)
        if self._ignore is not None:
            pairs = pairs.where(targets != self._ignore, self._classes**2)
        pairs = pairs.flatten()
        self._counts.index_add_(0, pairs, pairs.new_ones(()).expand(len(pairs)))

    def compute(self) -> dict[str, Any]:
        """The measures, and `class_IoU` as a list; None for a class that is neither there nor predicted."""
        counts = self._counts[:-1].reshape(self._classes, self._classes).double()
        both = counts.diag()
        either = counts.sum(0) + counts.sum(1) - both
        overlaps = (both / either).tolist()  # NaN where there is neither
        known = [value for value in overlaps if value == value]
        return {
            "mean_IoU": sum(known) / len(known) if known else float("nan"),
            "pixel_accuracy": float(both.sum() / counts.sum()),
            "class_IoU": [value if value == value else None for value in overlaps],
        }
