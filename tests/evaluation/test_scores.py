"""Scores against scikit-learn, BatchNorm statistics against float64 by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from tiny import assert_equal, tiny_setup
from torch import Tensor, nn

from sparsekit.errors import RunError
from sparsekit.evaluation.batchnorm import batchnorm_layers, recalibrate_batchnorm
from sparsekit.evaluation.scores import score_model
from sparsekit.run.progress import first_progress

FP32 = torch.autocast("cpu", enabled=False)


def data(count: int = 103, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 2, 6, 6, generator=generator) * 2.0 + 0.7
    return images, torch.randint(classes, (count,), generator=generator)


def batches(size: int) -> Iterable[tuple[Tensor, Tensor]]:
    images, labels = data()
    return zip(images.split(size), labels.split(size), strict=True)


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(dropout),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, momentum=0.03),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 40, 103])
def test_accuracy_and_loss_are_scikit_learns(size: int) -> None:
    model, (images, labels) = network(), data()
    score = score_model(model, batches(size), FP32)
    with torch.no_grad():
        logits = model.eval()(images).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert score.accuracy == accuracy_score(labels.numpy(), logits.argmax(1))
    assert score.loss == pytest.approx(log_loss(labels.numpy(), probabilities), rel=1e-6)


def test_the_splits_of_a_run_are_scored_whole() -> None:
    setup = tiny_setup()
    for split, count in (("held_out", 397), ("test", 1000)):
        parts = list(setup.data.evaluation_batches(split))
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        with torch.no_grad():
            logits = setup.model.eval()(images).double()
        score = setup.score(first_progress(setup).parent, split)
        assert len(labels) == count
        assert score.accuracy == accuracy_score(labels, logits.argmax(1))
        assert score.loss == pytest.approx(log_loss(labels, logits.softmax(1)), rel=1e-6)


def test_scoring_leaves_no_trace_and_drops_nothing_out() -> None:
    model = network(dropout=0.9).train()
    before = deepcopy(model.state_dict())
    first = score_model(model, batches(20), FP32)
    assert first == score_model(model.train(), batches(20), FP32)
    assert first == score_model(network(), batches(20), FP32)
    assert_equal(model.state_dict(), before)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_wrong_by_a_lot_and_right_by_a_lot() -> None:
    labels = torch.tensor([0, 1, 1])
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]])
    score = score_model(nn.Identity(), [(logits, labels)], FP32)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.loss == pytest.approx(1e4 / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_has_blown_up_scores_an_infinite_loss(value: float) -> None:
    logits = torch.zeros(3, 2)
    logits[1] = value
    score = score_model(nn.Identity(), [(logits, torch.zeros(3, dtype=torch.int64))], FP32)
    assert score.loss == math.inf
    assert 0.0 <= score.accuracy <= 1.0


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(RunError, match="the split is empty"):
        score_model(network(), [], FP32)


def test_autocast_is_used() -> None:
    exact = score_model(network(), batches(40), FP32)
    rounded = score_model(network(), batches(40), torch.autocast("cpu", torch.bfloat16))
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)


# --- BatchNorm ------------------------------------------------------------------------------------


def by_hand(model: nn.Sequential, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance before each BatchNorm of `network`, all images at once, in float64."""
    exact = deepcopy(model).double()
    stats = []
    with torch.no_grad():
        x = exact[0](images.double())
        stats.append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)))
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = F.relu(x * exact[1].weight.view(1, -1, 1, 1) + exact[1].bias.view(1, -1, 1, 1))
        x = exact[4](x)
        stats.append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)))
    return stats


def test_recalibrated_statistics_are_those_of_the_whole_data() -> None:
    model, (images, labels) = network(dropout=0.5), data()
    with torch.no_grad():
        for layer in batchnorm_layers(model):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
            layer.running_mean.fill_(99.0)  # whatever was measured before is forgotten
            layer.running_var.fill_(77.0)
    recalibrate_batchnorm(model, [(images, labels)], FP32)
    for layer, (mean, var) in zip(batchnorm_layers(model), by_hand(model, images), strict=True):
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)
        assert int(layer.num_batches_tracked) == 1


def test_over_several_batches_it_is_their_plain_mean() -> None:
    model, (images, labels) = network(), data(100)
    recalibrate_batchnorm(model, zip(images.split(20), labels.split(20), strict=True), FP32)
    exact = deepcopy(model[0]).double()
    with torch.no_grad():
        outputs = exact(images.double())
    layer = model[1]
    variances = [part.var((0, 2, 3), unbiased=True) for part in outputs.split(20)]
    torch.testing.assert_close(layer.running_mean.double(), outputs.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)
    # which is the variance of the whole data to within what a batch of 20 images can tell
    torch.testing.assert_close(layer.running_var.double(), outputs.var((0, 2, 3)), rtol=0.05, atol=0.0)


def test_it_is_torchs_cumulative_mean_without_a_look_at_its_count() -> None:
    """Which lies on the device; a layer that a forward pass calls twice counts twice."""
    shared = nn.BatchNorm2d(2)
    model, (images, labels) = nn.Sequential(shared, nn.ReLU(), shared), data(60)
    plain, momenta = deepcopy(model), []
    plain[0].momentum = None
    with torch.no_grad():
        for part in images.split(20):
            plain(part)
    shared.register_forward_hook(lambda layer, *_: momenta.append(layer.momentum))
    recalibrate_batchnorm(model, zip(images.split(20), labels.split(20), strict=True), FP32)
    assert momenta == [1.0 / count for count in range(1, 7)]
    assert_equal(model.state_dict(), plain.state_dict())


def test_a_short_last_batch_does_not_count_as_a_whole_one() -> None:
    first, second, (images, labels) = network(), network(), data(41)
    recalibrate_batchnorm(first, zip(images.split(20), labels.split(20), strict=True), FP32)
    recalibrate_batchnorm(second, zip(images[:40].split(20), labels[:40].split(20), strict=True), FP32)
    assert torch.equal(first[1].running_var, second[1].running_var)
    recalibrate_batchnorm(first, [(images[:7], labels[:7])], FP32)  # the only one counts, however small
    torch.testing.assert_close(first[1].running_mean.double(), by_hand(first, images[:7])[0][0], rtol=1e-5, atol=1e-6)


def test_momentum_comes_back_when_the_data_fail() -> None:
    model = network()

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield data(10)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        recalibrate_batchnorm(model, broken(), FP32)
    assert [layer.momentum for layer in batchnorm_layers(model)] == [0.1, 0.03]
    assert not any(module.training for module in batchnorm_layers(model))


def test_recalibration_depends_on_weights_and_data_alone() -> None:
    first, second = network(), network(dropout=0.9).train()
    for images, _ in batches(10):
        second(images)  # other statistics to begin with
    torch.manual_seed(7)
    for model in (first, second):
        recalibrate_batchnorm(model, batches(25), FP32)
    for left, right in zip(batchnorm_layers(first), batchnorm_layers(second), strict=True):
        assert torch.equal(left.running_mean, right.running_mean)
        assert torch.equal(left.running_var, right.running_var)


def test_recalibration_changes_statistics_only() -> None:
    model = network(dropout=0.5).train()
    before = deepcopy(model.state_dict())
    recalibrate_batchnorm(model, batches(25), FP32)
    assert [layer.momentum for layer in batchnorm_layers(model)] == [0.1, 0.03]
    assert not any(module.training for module in model.modules())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{n}.{key}" for n in (1, 5) for key in ("running_mean", "running_var", "num_batches_tracked")}


def test_a_model_without_batchnorm_is_not_run_at_all() -> None:
    def refuse() -> Iterable[tuple[Tensor, Tensor]]:
        raise AssertionError("data were read")
        yield

    recalibrate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)), refuse(), FP32)
    recalibrate_batchnorm(nn.BatchNorm2d(3, track_running_stats=False), refuse(), FP32)


def test_timms_own_batchnorms_are_found() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3)
    named = [name for name, _ in model.named_buffers() if name.endswith("running_mean")]
    assert len(batchnorm_layers(model)) == len(named) > 3


def test_a_runs_recalibration_is_by_hand_every_layers_statistics() -> None:
    setup = tiny_setup()
    seen: dict[str, Tensor] = {}
    for name, module in setup.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].double()))
    state = setup.recalibrated(first_progress(setup).parent)
    assert len(seen) == len(batchnorm_layers(setup.model)) > 8
    for name, x in seen.items():
        assert len(x) == 400  # all training images, each as it is
        mean, var = (state.tensors[f"{name}.running_{part}"].double() for part in ("mean", "var"))
        torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(var, x.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
