"""Metrics of a classifier's logits: accuracy, likelihood, calibration; accumulated over batches in float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from sparsekit.errors import RunError

BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of the calibration curve: how many images have a confidence in it, their mean confidence and accuracy."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on a split. Accuracies and calibration errors are from 0 to 1.

    Attributes:
        count: Number of images.
        accuracy: Fraction of images whose class has the highest logit.
        top5_accuracy: Fraction whose class is among the five highest logits; None with five classes or fewer.
        loss: Negative log likelihood, the mean cross-entropy in nats; infinite if a logit is NaN.
        ece: Expected calibration error (arXiv 1706.04599): |accuracy - confidence| in 15 bins of equal width, averaged
            over images. Each bin includes its lower edge, the last one both.
        mce: The largest |accuracy - confidence| of a bin.
        brier: Mean squared distance between probabilities and one-hot labels, summed over classes, 0 to 2.
        class_accuracy: Accuracy on each class's images; None for a class without images.
        bins: The calibration curve.
    """

    count: int
    accuracy: float
    top5_accuracy: float | None
    loss: float
    ece: float
    mce: float
    brier: float
    class_accuracy: tuple[float | None, ...]
    bins: tuple[Bin, ...]

    @property
    def worst_class(self) -> int:
        """The class with the lowest accuracy; the first of ties."""
        return min((value, index) for index, value in enumerate(self.class_accuracy) if value is not None)[1]

    def flat(self) -> dict[str, float | int]:
        """The scalar metrics under their keys in summary.json, without `test.`; those that are None are left out."""
        found = {
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "ece": self.ece,
            "mce": self.mce,
            "brier": self.brier,
            "worst_class_accuracy": self.class_accuracy[self.worst_class],
            "worst_class": self.worst_class,
        }
        return {key: value for key, value in found.items() if value is not None}


class Tally:
    """Accumulates the metrics of a classification over batches, without waiting for the device before `result`.

    Args:
        device: The device of the logits.
    """

    def __init__(self, device: torch.device) -> None:
        self.classes = 0
        self._device = device
        self._count = 0

    def _begin(self, classes: int) -> None:
        """Make room for the sums of so many classes."""
        self.classes = classes
        self._sums = torch.zeros(4, dtype=torch.float64, device=self._device)  # hits, hits among five, loss, Brier
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=self._device)  # images, confidence, hits
        self._of_class = torch.zeros(2, classes, dtype=torch.float64, device=self._device)  # images, hits

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K] of any floating type, labels int64 [B]."""
        if not self.classes:
            self._begin(logits.shape[1])
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        confidence = p.amax(1)
        predicted = logits.argmax(1)  # not of p: probabilities of different logits may round to the same number
        hit = (predicted == labels).double()
        of_label = labels[:, None]
        five = logits.topk(min(5, self.classes)).indices
        brier = p.square().sum(1) - 2.0 * p.gather(1, of_label)[:, 0] + 1.0
        loss = -log_p.gather(1, of_label)[:, 0]
        self._sums += torch.stack([hit.sum(), (five == of_label).sum(), loss.sum(), brier.sum()])
        index = (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)
        self._bins.index_add_(1, index, torch.stack([torch.ones_like(hit), confidence, hit]))
        self._of_class.index_add_(1, labels, torch.stack([torch.ones_like(hit), hit]))
        self._count += len(labels)

    def compute(self) -> dict[str, Any]:
        """The metrics by their keys in evaluation.json: numbers, and `class_accuracy` and `bins` as lists."""
        found = self.result()
        lists = {"class_accuracy": list(found.class_accuracy), "bins": [asdict(bar) for bar in found.bins]}
        return found.flat() | lists

    def result(self) -> Metrics:
        """The metrics of all batches; raises RunError if there were none."""
        if not self._count:
            raise RunError("there is nothing to evaluate: the split is empty")
        parts = (self._sums / self._count, self._bins, self._of_class)
        together = torch.cat([part.flatten() for part in parts]).cpu()  # one wait for the device
        sums, of_bins, of_class = torch.split(together, [part.numel() for part in parts])
        hits, five, loss, brier = sums.tolist()
        bins = tuple(
            Bin(int(count), confidence / max(count, 1.0), hits_in / max(count, 1.0))
            for count, confidence, hits_in in of_bins.view(3, BINS).T.tolist()
        )
        gaps = [(bar.count, abs(bar.accuracy - bar.confidence)) for bar in bins if bar.count]
        return Metrics(
            count=self._count,
            accuracy=hits,
            top5_accuracy=five if self.classes > 5 else None,
            loss=loss if isfinite(loss) else inf,
            ece=sum(count * gap for count, gap in gaps) / self._count,
            mce=max(gap for _, gap in gaps),
            brier=brier,
            class_accuracy=tuple(
                hit / count if count else None for count, hit in of_class.view(2, self.classes).T.tolist()
            ),
            bins=bins,
        )
