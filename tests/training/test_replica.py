"""The training loop against plain PyTorch, bit for bit, and what a replica depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny import (
    KWARGS,
    OnePrune,
    assert_equal,
    dense_then_pruned,
    differ,
    masked_are_zero,
    optimizer,
    pruned,
    tiny_setup,
    trained,
    with_steps,
)
from torch import Tensor, nn

from sparsekit import Budget, PruningMethod, Schedule, Segment, Stage, Tensors, TrainingStep
from sparsekit.config.options import DataConfig, MasksConfig, ModelConfig, ReplicasConfig
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.dpf import DPF
from sparsekit.models.state import State
from sparsekit.planning.replicas import Replica
from sparsekit.run.progress import first_progress
from sparsekit.seeds import derive
from sparsekit.training import replica as training
from sparsekit.training.replica import Progress
from sparsekit.training.setup import Setup

LR, DECAY = 0.05, 0.01


def cosine(fraction: float, warmup: float = 0.05, low: float = 0.01) -> float:
    """The default schedule: a linear warm-up, then a cosine to a hundredth."""
    if fraction < warmup:
        return fraction / warmup
    return low + (1 - low) * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup))) / 2


def plain_loop(
    setup: Setup,
    parent: State,
    stage: Stage,
    replica: int = 0,
    dense: bool = False,
    clip_norm: float | None = None,
    smoothing: float = 0.0,
    steps: int | None = None,
) -> tuple[nn.Module, list[float]]:
    """What a person would write: torch's SGD, masks multiplied in by hand. Goes on with the parent's momentum."""
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, **{k: tuple(v) for k, v in KWARGS.items()})
    model = model.to(memory_format=torch.channels_last)
    model.load_state_dict(parent.tensors)
    parameters = dict(model.named_parameters())
    spared = [p for p in parameters.values() if p.ndim == 1]  # biases, and norms' weights
    others = [p for p in parameters.values() if p.ndim > 1]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": others, "weight_decay": DECAY}]
    sgd = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True, fused=True)
    for name, parameter in parameters.items():
        if f"{name}/momentum_buffer" in parent.optimizer:  # in the weight's memory order, as the fused step reads it
            momentum = parent.optimizer[f"{name}/momentum_buffer"]
            sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
    count = setup.plan[stage.index].steps
    begin, epochs = stage.start / stage.budget.epochs, stage.segment.epochs / stage.budget.epochs
    seed = derive(setup.config.seed, "segment", stage.index, "replica", replica)
    rates = []
    model.train()
    for number, (images, labels) in enumerate(setup.data.train_batches(seed, count if steps is None else steps)):
        rates.append(LR * cosine(begin + epochs * (number + 0.5) / count))
        for group in sgd.param_groups:
            group["lr"] = rates[-1]
        behind = {name: parameters[name].detach().clone() for name in parent.masks}
        with torch.no_grad():
            for name, mask in parent.masks.items():
                parameters[name][~mask] = 0.0
        sgd.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=smoothing).backward()
        with torch.no_grad():
            for name, mask in parent.masks.items():
                if dense:  # the gradient at the masked weights goes to the dense weights behind them
                    parameters[name].copy_(behind[name])
                else:
                    parameters[name].grad[~mask] = 0.0
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([*spared, *others], clip_norm)
        sgd.step()
        with torch.no_grad():
            for name, mask in parent.masks.items():
                if not dense:
                    parameters[name][~mask] = 0.0
    return model, rates


def setup_for_sgd(method: PruningMethod | None = None, **changes: Any) -> Setup:
    """At half sparsity, where the tiny network still learns; at 0.9 most of its gradients vanish."""
    settings = {"epochs": 3, "sparsity": 0.5, "optimizer": optimizer("sgd", LR, weight_decay=DECAY)}
    return tiny_setup(method or OnePrune(), **settings, **changes)


# --- against plain PyTorch --------------------------------------------------------------------------


@pytest.mark.parametrize("replica", [0, 1])
def test_a_replica_is_a_plain_loop_bit_for_bit(replica: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    setup = setup_for_sgd()
    parent, stage = dense_then_pruned(setup)
    assert any(tensor.any() for tensor in parent.optimizer.values())  # momentum goes on
    reports: list[Progress] = []
    state = trained(setup, parent, stage, replica, report=reports.append)
    model, rates = plain_loop(setup, parent, stage, replica)
    assert_equal(state.tensors, model.state_dict())
    assert [r.lr for r in reports] == pytest.approx(rates, rel=1e-12)
    assert [(r.done, r.steps) for r in reports] == [(i, 16) for i in range(1, 17)]


def test_the_first_segment_starts_from_the_fresh_model() -> None:
    setup = setup_for_sgd()
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    state = trained(setup, parent, stage)
    assert_equal(state.tensors, plain_loop(setup, parent, stage)[0].state_dict())
    torch.manual_seed(derive(0, "model"))
    kwargs = {k: tuple(v) for k, v in KWARGS.items()}
    assert_equal(parent.tensors, timm.create_model("resnet18", num_classes=10, in_chans=1, **kwargs).state_dict())


def test_a_restarting_schedule_forgets_momentum() -> None:
    setup = setup_for_sgd()
    parent, stage = dense_then_pruned(setup)
    continued = setup.method.learning_rate(stage)
    state = trained(setup, parent, stage, schedule=Schedule(continued.multiplier, restarts=True))
    model, _ = plain_loop(setup, replace(parent, optimizer={}), stage)
    assert_equal(state.tensors, model.state_dict())


def test_gradients_are_clipped_after_masking() -> None:
    setup = setup_for_sgd()
    parent, stage = dense_then_pruned(setup)
    clipped = replace(setup, config=replace(setup.config, optimizer=replace(setup.config.optimizer, clip_norm=0.1)))
    state = trained(clipped, parent, stage)
    assert_equal(state.tensors, plain_loop(setup, parent, stage, clip_norm=0.1)[0].state_dict())
    assert differ(state.tensors, trained(setup, parent, stage).tensors)


def test_a_clipped_step_is_as_long_as_it_may_be() -> None:
    setup = tiny_setup(OnePrune(), epochs=2, optimizer=optimizer("sgd", LR, weight_decay=0.0, clip_norm=1e-3))
    setup = with_steps(setup, 1, 8)
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    state = trained(setup, parent, stage, schedule=Schedule(lambda done: 1.0))
    names = [name for name, _ in setup.model.named_parameters()]
    moved = math.sqrt(sum(float((state.tensors[n] - parent.tensors[n]).double().square().sum()) for n in names))
    assert moved == pytest.approx(LR * 1.9 * 1e-3, rel=1e-3)  # Nesterov's first step is 1 + momentum of the gradient


def test_label_smoothing_is_in_the_training_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    setup = setup_for_sgd(label_smoothing=0.3)
    parent, stage = dense_then_pruned(setup)
    reports: list[Progress] = []
    state = trained(setup, parent, stage, report=reports.append)
    assert_equal(state.tensors, plain_loop(setup, parent, stage, smoothing=0.3)[0].state_dict())

    model, _ = plain_loop(setup, parent, stage, steps=0)
    seed = derive(0, "segment", 1, "replica", 0)
    images, labels = next(iter(setup.data.train_batches(seed, 1)))
    with torch.no_grad():
        log = model.train()(images).double().log_softmax(1)
    target = 0.7 * F.one_hot(labels, 10) + 0.3 / 10
    assert reports[0].loss == pytest.approx(float(-(target * log).sum(1).mean()), rel=1e-5)


def test_dpf_updates_dense_weights_by_gradients_at_the_masked_ones() -> None:
    method = DPF()
    setup = setup_for_sgd(method)
    setup = replace(setup, plan=tuple(replace(segment, steps=4) for segment in setup.plan))
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    for index in range(1, 6):
        parent, stage = pruned(setup, trained(setup, parent, stage), index)
    state = trained(setup, parent, stage)
    for name, tensor in plain_loop(setup, parent, stage, dense=True)[0].state_dict().items():
        # not bit for bit: effective weights that lie otherwise in memory meet other kernels
        torch.testing.assert_close(state.tensors[name], tensor, rtol=1e-5, atol=1e-5)
    without = plain_loop(setup, parent, stage)[0].state_dict()
    assert max(float((without[name] - t).abs().max()) for name, t in state.weights.items()) > 1e-3
    behind = [(name, ~mask) for name, mask in state.masks.items() if not mask.all()]
    assert all(state.weights[name][mask].all() for name, mask in behind)
    assert all((state.weights[name] != parent.weights[name])[mask].any() for name, mask in behind)
    setup.install(state)
    assert masked_are_zero(dict(setup.model.named_parameters()), state.masks)
    assert len(behind) > 3


def test_weight_decay_spares_norms_and_biases() -> None:
    """At a rate of almost nothing but a decay of very much, only decayed weights move."""
    config = optimizer("momentum", 1e-9, weight_decay=1e7, momentum=0.0)
    setup = with_steps(tiny_setup(OnePrune(), epochs=2, optimizer=config), 1, 8)
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    state = trained(setup, parent, stage, schedule=Schedule(lambda done: 1.0))
    for name, parameter in setup.model.named_parameters():
        factor = 0.99 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(state.tensors[name], factor * parent.tensors[name], rtol=1e-5, atol=1e-7)


# --- reports ----------------------------------------------------------------------------------------


def test_losses_are_reported_as_means_and_the_rest_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_for_sgd()
    setup = with_steps(setup, 13, 16)
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    coarse: list[Progress] = []
    trained(setup, parent, stage, report=coarse.append)
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    fine: list[Progress] = []
    trained(setup, parent, stage, report=fine.append)
    assert [r.done for r in coarse] == [8, 13]  # an epoch, and what is left
    losses = [r.loss for r in fine]
    assert coarse[0].loss == pytest.approx(sum(losses[:8]) / 8, rel=1e-5)
    assert coarse[1].loss == pytest.approx(sum(losses[8:]) / 5, rel=1e-5)


# --- what a replica depends on ----------------------------------------------------------------------


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    def run(seed: int) -> Tensors:
        setup = setup_for_sgd(seed=seed)
        parent, stage = dense_then_pruned(setup)
        return trained(setup, parent, stage).tensors

    first = run(0)
    assert_equal(first, run(0))
    assert differ(first, run(1))


def test_replicas_differ_and_do_not_depend_on_who_came_before() -> None:
    kwargs = {**KWARGS, "drop_rate": 0.2, "drop_path_rate": 0.2}  # random numbers in the model as well
    setup = setup_for_sgd(replicas=ReplicasConfig(count=3, start=0.0), model=ModelConfig(kwargs=kwargs))
    parent, stage = dense_then_pruned(setup)
    forwards = [trained(setup, parent, stage, index) for index in (0, 1, 2)]
    setup.score(setup.recalibrated(forwards[2]), "held_out")
    torch.randn(5)
    backwards = [trained(setup, parent, stage, index) for index in (2, 1, 0)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert_equal(one.tensors, other.tensors)
        assert_equal(one.optimizer, other.optimizer)
    assert all(differ(forwards[a].tensors, forwards[b].tensors) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_segment_has_random_numbers_of_its_own() -> None:
    """The same parent trained in another segment's place meets other batches."""
    setup = setup_for_sgd(OnePrune(1.5))
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    assert setup.plan[0].steps == setup.plan[1].steps
    flat = Schedule(lambda done: 1.0)
    here, there = (trained(setup, parent, replace(stage, index=i), schedule=flat) for i in (0, 1))
    assert differ(here.tensors, there.tensors)


def test_the_parent_is_left_as_it_was() -> None:
    setup = setup_for_sgd()
    parent, stage = dense_then_pruned(setup)
    tensors, momenta = ({n: t.clone() for n, t in part.items()} for part in (parent.tensors, parent.optimizer))
    trained(setup, parent, stage)
    assert_equal(parent.tensors, tensors)
    assert_equal(parent.optimizer, momenta)


class Scaled(OnePrune):
    """Each layer's weights times a learned scale from 0 to 2, which begins at 1; named as the weights are."""

    def extra(self, weights: Tensors) -> Tensors:
        return {name: torch.zeros(()) for name in weights}

    def effective(self, step: TrainingStep) -> Tensors:
        return {name: w * step.masks[name] * 2.0 * step.extra[name].sigmoid() for name, w in step.weights.items()}


def test_extra_tensors_are_trained_a_copy_in_each_replica() -> None:
    setup = setup_for_sgd(Scaled())
    parent, stage = dense_then_pruned(setup)
    extra = {name: tensor.clone() for name, tensor in parent.extra.items()}
    reports: list[Progress] = []
    first, second = (trained(setup, parent, stage, index, report=reports.append) for index in (0, 1))
    assert all(report.loss < math.log(10) for report in reports)  # it learns
    assert_equal(parent.extra, extra)
    assert not any(t.requires_grad for state in (parent, first, second) for t in state.extra.values())
    assert differ(first.extra, parent.extra)
    assert differ(first.extra, second.extra)
    assert_equal(trained(setup, parent, stage, 0).extra, first.extra)
    momenta = [t for name, t in first.optimizer.items() if name.startswith("extra.")]
    assert len(momenta) == len(extra)


# --- precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param(OnePrune, marks=pytest.mark.slow), DPF])
def test_bf16_on_the_cpu_keeps_masks_exact(method: type[PruningMethod]) -> None:
    data = DataConfig(image_size=32)  # torch's bf16 gradient of a strided convolution of one pixel is garbage on CPUs
    setup, exact = setup_for_sgd(method(), data=data, precision="bf16"), setup_for_sgd(method(), data=data)
    parent, stage = dense_then_pruned(setup)
    if method is DPF:
        parent, stage = pruned(setup, trained(setup, parent, stage), 2)
    state = trained(setup, parent, stage)
    assert all(t.dtype is torch.float32 for t in state.weights.values())
    assert all(t.isfinite().all() for t in state.tensors.values())
    setup.install(state)
    assert masked_are_zero(dict(setup.model.named_parameters()), state.masks)
    assert differ(state.tensors, trained(exact, parent, stage).tensors)
    assert_equal(state.tensors, trained(setup, parent, stage).tensors)


def test_channels_last_is_a_matter_of_speed() -> None:
    results = []
    for channels_last in (False, True):
        setup = setup_for_sgd(channels_last=channels_last)
        parent, stage = pruned(setup, first_progress(setup).parent, 0)
        results.append(trained(with_steps(setup, 2, 16), parent, stage).tensors)
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-2, atol=1e-3)


# --- what replicas may differ in --------------------------------------------------------------------


def batches_of(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images of every training batch from now on."""
    seen: list[Tensor] = []
    original = type(setup.data).train_batches

    def spy(*args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in original(*args, **kwargs):
            seen.append(images)
            yield images, labels

    monkeypatch.setattr(type(setup.data), "train_batches", spy)
    return seen


@pytest.mark.slow
def test_each_axis_has_its_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_for_sgd()
    parent, stage = dense_then_pruned(setup)
    seen = batches_of(setup, monkeypatch)
    base = Replica(0, 0, LR, DECAY)

    def run(**changes: float) -> tuple[Tensors, list[Progress], list[Tensor]]:
        seen.clear()
        reports: list[Progress] = []
        return trained(setup, parent, stage, replace(base, **changes), report=reports.append).tensors, reports, [*seen]

    tensors, reports, batches = run()
    assert len(batches) == 16

    other, fast, same = run(lr=2 * LR)
    assert [r.lr for r in fast] == [2 * r.lr for r in reports]
    assert differ(other, tensors)
    assert all(torch.equal(a, b) for a, b in zip(same, batches, strict=True))

    other, _, same = run(weight_decay=0.5)
    assert all(torch.equal(a, b) for a, b in zip(same, batches, strict=True))
    sizes = [sum(float(t[n].abs().sum()) for n in parent.masks) for t in (other, tensors)]
    assert sizes[0] < 0.95 * sizes[1]

    other, short, fewer = run(length=0.5)
    assert (len(fewer), short[-1].done, short[-1].steps) == (8, 8, 8)
    begin, epochs = stage.start / stage.budget.epochs, stage.segment.epochs / stage.budget.epochs
    assert short[-1].lr == pytest.approx(LR * cosine(begin + epochs * 7.5 / 8))  # the whole schedule, in half the steps

    other, _, same = run(label_smoothing=0.2)
    assert all(torch.equal(a, b) for a, b in zip(same, batches, strict=True))
    smoothed = setup_for_sgd(label_smoothing=0.2)
    assert_equal(other, trained(smoothed, parent, stage, replace(base, label_smoothing=0.2)).tensors)
    assert differ(other, tensors)

    other, _, none = run(augment=0.0)
    plain = setup_for_sgd(data=replace(setup.config.data, augment=False))
    assert_equal(other, trained(plain, parent, stage, base).tensors)
    assert all(not torch.equal(a, b) for a, b in zip(none, batches, strict=True))

    other, _, order = run(seed=7)
    assert differ(other, tensors)
    assert not torch.equal(order[0], batches[0])


class Pulled(OnePrune):
    """Weights are pulled towards 0, and gradients are made smaller."""

    def __init__(self, pull: float = 0.0, steps: int = 1) -> None:
        super().__init__()
        self.pull, self.steps = pull, steps

    def penalty(self, step: TrainingStep) -> Tensor:
        return self.pull * sum(weight.square().sum() for weight in step.weights.values())  # type: ignore[return-value]

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        return {name: gradient / self.steps for name, gradient in gradients.items()}


@pytest.mark.slow
def test_a_replica_follows_the_method_of_its_own() -> None:
    """In training as in a run whose method it is; scores and masks are the run's."""
    setup = setup_for_sgd(Pulled())
    parent, stage = dense_then_pruned(setup)
    base = Replica(0, 0, LR, DECAY)
    for method in (Pulled(pull=0.05), Pulled(steps=4)):
        own = trained(setup, parent, stage, replace(base, method=method))
        assert_equal(own.tensors, trained(setup_for_sgd(method), parent, stage, base).tensors)
        assert_equal(own.masks, parent.masks)
        assert differ(own.tensors, trained(setup, parent, stage, base).tensors)
    assert_equal(
        trained(setup, parent, stage, replace(base, method=Pulled())).tensors,
        trained(setup, parent, stage, base).tensors,
    )


def test_a_subsample_is_all_that_its_replica_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_for_sgd()
    data = replace(setup.config.data, augment=False)
    setup = setup_for_sgd(data=data)
    parent, stage = dense_then_pruned(setup)
    seen = batches_of(setup, monkeypatch)
    replica = Replica(0, 0, LR, DECAY)

    def images() -> set[bytes]:
        return {image.numpy().tobytes() for batch in seen for image in batch}

    trained(setup, parent, stage, replica)
    everything = images()
    seen.clear()
    trained(setup, parent, stage, replace(replica, subsample=0.3))
    part = images()
    assert len(seen) == 16  # as many steps, each image oftener
    assert part < everything
    assert len(part) <= 120 < 0.5 * len(everything)
    seen.clear()
    trained(setup, parent, stage, replace(replica, subsample=0.3, seed=1))
    assert images() != part


# --- trajectories -----------------------------------------------------------------------------------


class Averaging(OnePrune):
    """Candidates are means of the last half of their trajectories."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return tuple(replace(segment, average_from=0.5) for segment in super().plan(budget))


def test_a_trajectorys_mean_is_the_mean_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    setup = setup_for_sgd(Averaging(), masks=MasksConfig("uniform"))
    parent, stage = dense_then_pruned(setup)
    parameters = dict(setup.model.named_parameters())
    snapshots: list[Tensors] = []

    def keep(progress: Progress) -> None:
        snapshots.append({name: p.detach().double() for name, p in parameters.items()})

    state = trained(setup, parent, stage, report=keep)
    plain = setup_for_sgd(OnePrune(), masks=MasksConfig("uniform"))
    last = trained(plain, parent, plain.plan[1].stage)
    assert len(snapshots) == 16
    for name in parameters:
        mean = torch.stack([snapshot[name] for snapshot in snapshots[8:]]).mean(0)
        torch.testing.assert_close(state.tensors[name].double(), mean, rtol=1e-5, atol=1e-7)
    assert masked_are_zero(state.weights, state.masks)
    assert differ(state.weights, last.weights)
    assert_equal(state.optimizer, last.optimizer)


class Fading(Uniform):
    """Candidates are exponential moving averages of the last half of their trajectories."""

    average_from, average_decay = 0.5, 0.6


def test_an_exponential_average_fades_early_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: shares of 1, 1/2 and then 0.4 of the step that is added."""
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    setup = setup_for_sgd(merge=Fading(), masks=MasksConfig("uniform"))
    parent, stage = dense_then_pruned(setup)
    parameters, steps = dict(setup.model.named_parameters()), list[Tensors]()

    def keep(progress: Progress) -> None:
        steps.append({name: p.detach().double() for name, p in parameters.items()})

    state = trained(setup, parent, stage, report=keep)
    for name in parameters:
        first, second, *rest = (step[name] for step in steps[8:])
        mean = (first + second) / 2
        for each in rest:
            mean = 0.6 * mean + 0.4 * each
        torch.testing.assert_close(state.tensors[name].double(), mean, rtol=1e-5, atol=1e-7)
    assert len(steps) == 16
