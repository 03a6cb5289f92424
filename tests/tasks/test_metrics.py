"""Metrics against scikit-learn, torchmetrics and formulas written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from sparsekit.errors import RunError
from sparsekit.evaluation.scores import measure_model
from sparsekit.models.device import autocast
from sparsekit.tasks.classification import Classification
from sparsekit.tasks.metrics import Metrics, Tally

CPU = torch.device("cpu")


def answers(count: int, classes: int, sharpness: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know something of their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)  # each class at least once
    logits = sharpness * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += sharpness
    return logits, labels


def measured(logits: Tensor, labels: Tensor, size: int = 64) -> Metrics:
    tally = Tally(CPU)
    for some, truth in zip(logits.split(size), labels.split(size), strict=True):
        tally.update(some, truth)
    return tally.result()


def calibration_by_hand(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> tuple[float, float]:
    """ECE and MCE, one image at a time."""
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for row, label in zip(p, labels, strict=True):
        place = next(i for i in range(bins) if row.max() < (i + 1) / bins or i == bins - 1)
        members[place].append((row.max(), float(row.argmax() == label)))
    gaps = [abs(math.fsum(c for c, _ in m) - math.fsum(h for _, h in m)) / len(m) for m in members if m]
    counts = [len(m) for m in members if m]
    return sum(g * n for g, n in zip(gaps, counts, strict=True)) / len(p), max(gaps)


@pytest.mark.parametrize("size", [1, 64, 1000])
@pytest.mark.parametrize(("classes", "sharpness"), [(10, 2.0), (100, 3.0), (3, 0.3), (7, 20.0)])
def test_every_number_agrees_with_an_independent_computation(classes: int, sharpness: float, size: int) -> None:
    logits, labels = answers(1000, classes, sharpness)
    found = measured(logits, labels, size)
    x, y = logits.double().numpy(), labels.numpy()
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ece, mce = calibration_by_hand(p, y)
    assert found.count == 1000
    assert found.accuracy == pytest.approx(accuracy_score(y, x.argmax(1)), abs=1e-12)
    assert found.loss == pytest.approx(-log_softmax(x, 1)[np.arange(1000), y].mean(), abs=1e-6)
    assert found.ece == pytest.approx(ece, abs=1e-6)
    assert found.mce == pytest.approx(mce, abs=1e-6)
    assert found.brier == pytest.approx(((p - np.eye(classes)[y]) ** 2).sum(1).mean(), abs=1e-6)
    assert found.class_accuracy == pytest.approx(recall_score(y, x.argmax(1), average=None))
    assert found.class_accuracy[found.worst_class] == min(recall_score(y, x.argmax(1), average=None))
    if classes > 5:
        assert found.top5_accuracy == pytest.approx(top_k_accuracy_score(y, x, k=5, labels=range(classes)))
    else:
        assert found.top5_accuracy is None
        assert "top5_accuracy" not in found.flat()
    assert sum(bar.count for bar in found.bins) == 1000


def test_torchmetrics_says_the_same_where_no_confidence_is_rounded_to_one() -> None:
    logits, labels = answers(2000, 10, 1.0)
    found = measured(logits, labels)
    options = {"num_classes": 10, "n_bins": 15}
    assert found.ece == pytest.approx(float(multiclass_calibration_error(logits, labels, **options)), abs=1e-6)
    largest = float(multiclass_calibration_error(logits, labels, norm="max", **options))
    assert found.mce == pytest.approx(largest, abs=2e-6)  # theirs is computed in float32
    assert found.accuracy == pytest.approx(float(multiclass_accuracy(logits, labels, 10, average="micro")))
    per_class = multiclass_accuracy(logits, labels, 10, average="none").tolist()
    assert found.class_accuracy == pytest.approx(per_class)
    five = multiclass_accuracy(logits, labels, 10, top_k=5, average="micro")
    assert found.top5_accuracy == pytest.approx(float(five))


def test_full_confidence_belongs_to_the_last_bin() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [0.0, 3.5]])  # confidences 1, 1 and 0.97
    found = measured(logits, torch.tensor([0, 1, 1]))
    assert [bar.count for bar in found.bins] == [0] * 14 + [3]
    confidence = (2.0 + 1.0 / (1.0 + math.exp(-3.5))) / 3
    assert found.ece == found.mce == pytest.approx(confidence - 2 / 3, abs=1e-12)


def test_a_class_without_images_has_no_accuracy_and_is_not_the_worst() -> None:
    found = measured(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 2, 2]))
    assert found.class_accuracy == (1.0, None, 0.5)
    assert found.worst_class == 2


def test_an_output_that_is_not_a_number_is_an_infinite_loss() -> None:
    logits, labels = answers(50, 10)
    logits[7, 3] = math.nan
    assert measured(logits, labels).loss == math.inf


def test_nothing_cannot_be_measured() -> None:
    with pytest.raises(RunError, match="nothing to evaluate"):
        Tally(CPU).result()


def test_predictions_come_back_for_comparison() -> None:
    logits, labels = answers(20, 4)
    batches = zip(logits.bfloat16().split(7), labels.split(7), strict=True)
    found = measure_model(nn.Identity(), batches, autocast(CPU, torch.float32), Classification(), predictions=True)
    assert found.predictions is not None
    assert torch.equal(found.predictions, logits.bfloat16().argmax(1))
