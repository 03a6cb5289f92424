"""Losses and measures against values worked by hand, and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sklearn import metrics
from sparsekit_tasks.multilabel import Multilabel
from sparsekit_tasks.regression import Regression
from sparsekit_tasks.segmentation import Segmentation
from torch import Tensor

from sparsekit.api import Task
from sparsekit.testing import check_task

CPU = torch.device("cpu")


def measured(task: Task, outputs: Tensor, targets: Tensor, batch: int = 7) -> Mapping[str, Any]:
    """The measures, in batches."""
    meter = task.meter(CPU)
    for some, of in zip(outputs.split(batch), targets.split(batch), strict=True):
        meter.update(some, of)
    return meter.compute()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Multilabel, Regression, Segmentation])
def test_the_contract(cls: type[Task]) -> None:
    check_task(cls)


def test_the_contract_with_options() -> None:
    check_task(Segmentation, ignore=2, classes=2)


# --- multilabel --------------------------------------------------------------------------------------


def test_multilabel_by_hand() -> None:
    outputs = torch.tensor([[2.0, -2.0], [1.0, 2.0], [0.5, 0.0]])
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    found = measured(Multilabel(), outputs, targets, batch=2)
    # the first label: right, wrong, right; the second: wrong, wrong, right
    assert found["label_AP"] == pytest.approx([(1.0 + 2.0 / 3.0) / 2.0, 1.0 / 3.0])
    assert found["mAP"] == pytest.approx(7.0 / 12.0)
    assert Multilabel().loss(torch.zeros(3, 2), targets).item() == pytest.approx(math.log(2.0))
    certain = torch.tensor([[math.log(3.0)]])  # a probability of 3/4
    assert Multilabel().loss(certain, torch.ones(1, 1)).item() == pytest.approx(math.log(4.0 / 3.0))
    smoothed = 0.9 * math.log(4.0 / 3.0) + 0.1 * math.log(4.0)
    assert Multilabel().smoothed_loss(certain, torch.ones(1, 1), 0.2).item() == pytest.approx(smoothed)


def test_multilabel_as_scikit_learn_has_it() -> None:
    outputs, targets = drawn(50, 6), (drawn(50, 6, seed=1) > 0.7).double()
    found = measured(Multilabel(), outputs, targets)
    assert found["mAP"] == pytest.approx(metrics.average_precision_score(targets, outputs))
    assert found["F1"] == pytest.approx(metrics.f1_score(targets, outputs > 0, average="macro", zero_division=0))
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(targets, outputs > 0))
    assert found["mAP"] == measured(Multilabel(), outputs, targets.long(), batch=50)["mAP"]


def test_multilabel_ranks_by_logits_even_where_all_of_a_batch_look_like_probabilities() -> None:
    outputs = torch.tensor([[0.9], [0.8], [-1.0], [0.95]])
    targets = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    assert measured(Multilabel(), outputs, targets, batch=2)["mAP"] == 1.0


def test_a_label_that_no_example_has_does_not_count() -> None:
    outputs, targets = torch.tensor([[1.0, 3.0], [2.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = measured(Multilabel(), outputs, targets)
    assert found["label_AP"] == [1.0, None]
    assert found["mAP"] == 1.0
    assert math.isnan(measured(Multilabel(), outputs, torch.zeros(2, 2))["mAP"])


def test_multilabel_ensembles_average_probabilities() -> None:
    members = [3.0 * drawn(4, 3, seed=seed) for seed in range(3)]
    mean = torch.stack([each.sigmoid() for each in members]).mean(0)
    torch.testing.assert_close(Multilabel().mean_outputs(iter(members)).sigmoid(), mean)
    far = Multilabel().mean_outputs([torch.full((1, 1), 1e3), torch.full((1, 1), 2e3)])
    assert bool(torch.isfinite(far).all())


@pytest.mark.parametrize("task", [Multilabel(), Segmentation()])
def test_distillation_is_0_for_the_teacher_itself_and_the_divergence_by_its_definition(task: Task) -> None:
    own, other = drawn(3, 4, 2, 2), drawn(3, 4, 2, 2, seed=1)
    assert task.distillation(own, own, 2.0).item() == pytest.approx(0.0, abs=1e-12)
    if isinstance(task, Multilabel):
        p, q = (torch.stack([(each / 2.0).sigmoid(), (-each / 2.0).sigmoid()]) for each in (other, own))
        expected = (p * (p / q).log()).sum(0).mean()
    else:
        p, q = ((each / 2.0).softmax(1) for each in (other, own))
        expected = (p * (p / q).log()).sum(1).mean()
    assert task.distillation(own, other, 2.0).item() == pytest.approx(4.0 * expected.item())


# --- regression --------------------------------------------------------------------------------------


def test_regression_by_hand() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])
    found = measured(Regression(), outputs, targets, batch=1)
    assert found == pytest.approx({"R2": 0.5, "MAE": 1.0 / 3.0})
    assert Regression().loss(outputs, targets).item() == pytest.approx(1.0 / 3.0)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1.0, 1e6), (1e5, -3.0)])
def test_regression_as_scikit_learn_has_it_at_any_scale(scale: float, shift: float) -> None:
    targets = scale * drawn(40, 3) + shift
    outputs = targets + scale * 0.7 * drawn(40, 3, seed=1)
    found = measured(Regression(), outputs, targets)
    assert found["R2"] == pytest.approx(metrics.r2_score(targets, outputs), rel=1e-6)
    assert found["MAE"] == pytest.approx(metrics.mean_absolute_error(targets, outputs), rel=1e-6)
    assert found == pytest.approx(measured(Regression(), outputs, targets, batch=40), rel=1e-9)


def test_constant_targets_have_r2_as_scikit_learn_says() -> None:
    targets = torch.full((5, 1), 0.1)
    for outputs in (targets, targets + 1.0):
        expected = metrics.r2_score(targets, outputs)
        assert measured(Regression(), outputs, targets, batch=2)["R2"] == expected == float(outputs is targets)


def test_a_column_of_outputs_is_never_spread_over_a_row_of_targets() -> None:
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 3.0])
    assert Regression().loss(outputs, targets).item() == 0.0
    assert Regression().num_outputs(targets) == 1
    assert Regression().num_outputs(torch.zeros(4, 3)) == 3
    with pytest.raises(ValueError, match="there must be 1 output each"):
        Regression().check(torch.zeros(2, 2), targets)
    with pytest.raises(ValueError, match="there must be 3 outputs each"):
        Regression().check(torch.zeros(4, 2), torch.zeros(4, 3))


# --- segmentation ------------------------------------------------------------------------------------


def logits_of(predicted: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(predicted, classes).movedim(-1, 1).double()


def test_segmentation_by_hand() -> None:
    predicted, targets = torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 1]]])
    found = measured(Segmentation(), logits_of(predicted, 3), targets)
    assert found["class_IoU"] == [0.5, pytest.approx(2.0 / 3.0), None]
    assert found["mean_IoU"] == pytest.approx(7.0 / 12.0)
    assert found["pixel_accuracy"] == 0.75
    uniform = torch.zeros(1, 3, 2, 2)
    assert Segmentation().loss(uniform, targets).item() == pytest.approx(math.log(3.0))


def test_segmentation_as_scikit_learn_has_it() -> None:
    outputs, targets = drawn(9, 4, 5, 6), drawn(9, 5, 6, seed=1).mul(2).long().clamp(0, 3)
    predicted = outputs.argmax(1).flatten()
    found = measured(Segmentation(), outputs, targets, batch=2)
    assert found["mean_IoU"] == pytest.approx(metrics.jaccard_score(targets.flatten(), predicted, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(targets.flatten(), predicted))


def test_pixels_to_ignore_count_nowhere() -> None:
    task = Segmentation(ignore=255)
    outputs, targets = drawn(6, 3, 4, 4), drawn(6, 4, 4, seed=1).abs().long().clamp(0, 2)
    unseen = drawn(6, 4, 4, seed=2) > 0.5
    marked = targets.masked_fill(unseen, 255)
    kept, predicted = targets[~unseen], outputs.argmax(1)[~unseen]
    assert measured(task, outputs, marked)["mean_IoU"] == pytest.approx(
        metrics.jaccard_score(kept, predicted, average="macro")
    )
    rows = outputs.movedim(1, -1)[~unseen]
    assert task.loss(outputs, marked).item() == pytest.approx(metrics.log_loss(kept, rows.softmax(1), labels=[0, 1, 2]))
    nothing = torch.full((1, 4, 4), 255)
    assert task.loss(outputs[:1], nothing).item() == 0.0
    assert math.isnan(measured(task, outputs[:1], nothing)["mean_IoU"])


def test_a_label_that_is_not_to_be_ignored_is_no_label_less() -> None:
    outputs, targets = drawn(1, 2, 2, 2), torch.tensor([[[0, 1], [-1, 1]]])
    with pytest.raises(ValueError, match=r"there is a label -1; --task\.ignore"):
        Segmentation().check(outputs, targets)
    Segmentation(ignore=-1).check(outputs, targets)
    with pytest.raises(IndexError):
        Segmentation().loss(outputs, targets)


def test_the_number_of_classes() -> None:
    assert Segmentation(ignore=255).num_outputs(torch.tensor([[[0, 3], [255, 1]]])) == 4
    assert Segmentation(classes=21).num_outputs(torch.tensor([[[0, 3], [255, 1]]])) == 21
    with pytest.raises(ValueError, match=r"--task\.classes is 0; give 1 or more"):
        Segmentation(classes=0)


# --- what does not suit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "reason"),
    [
        (Multilabel(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), "a row of 0 and 1"),
        (Multilabel(), torch.zeros(2, 3), torch.full((2, 3), 0.5), "a row of 0 and 1"),
        (Multilabel(), torch.zeros(2, 4), torch.zeros(2, 3), "3 logits each"),
        (Regression(), torch.zeros(2, 1), torch.zeros(2, 1, 1), "a number each"),
        (Segmentation(), torch.zeros(2, 2, 4, 4), torch.zeros(2, 4, 4), "a class number for each pixel"),
        (Segmentation(), torch.zeros(2, 2), torch.zeros(2, 4, 4).long(), "logits for each pixel"),
        (Segmentation(), torch.zeros(2, 2, 2, 2), torch.zeros(2, 4, 4).long(), "logits for each pixel"),
        (Segmentation(classes=3), torch.zeros(2, 2, 4, 4), torch.zeros(2, 4, 4).long(), "--task.classes is 3"),
        (Segmentation(), torch.zeros(2, 2, 4, 4), torch.full((2, 4, 4), 2), "there is a label 2"),
    ],
)
def test_outputs_that_do_not_suit_are_refused(task: Task, outputs: Tensor, targets: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        task.check(outputs, targets)
