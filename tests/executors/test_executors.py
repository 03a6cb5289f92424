"""Replicas stacked and in lockstep against replicas one after another; reduced precision and compiled steps."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from tiny import ARGUMENTS, METHODS, assert_equal, differ, optimizer, rows, tiny_config, tiny_setup
from torch import nn

from sparsekit import Tensor, TrainingStep
from sparsekit.api import PruningMethod, Schedule, Stage
from sparsekit.config.options import ModelConfig, OptimizerConfig, ReplicasConfig
from sparsekit.executors import choose_executor, sequential
from sparsekit.executors import stacked as vectorized
from sparsekit.launch import fit
from sparsekit.merges.none import NoMerge
from sparsekit.methods.gmp import GMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.state import State
from sparsekit.run import loop
from sparsekit.run.progress import first_progress
from sparsekit.run.signals import Stopped
from sparsekit.testing.problem import job, state_of
from sparsekit.training import optimizers
from sparsekit.training.prepare import prepare
from sparsekit.training.setup import Setup
from sparsekit.training.step import MaskedStep

LOCKSTEP = ReplicasConfig(count=3, start=0.0, executor="vectorized")


class Drawn(GMP):
    """A penalty, extra tensors and steered gradients: all that a method may do to a step."""

    def extra(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace(".", "_"): torch.ones(()) for name in weights}

    def penalty(self, step: TrainingStep) -> Tensor:
        drawn = sum(w.square().sum() * step.extra[n.replace(".", "_")] for n, w in step.weights.items())
        return 1e-3 * drawn + 1e-2 * sum((e - 0.5).square() for e in step.extra.values())  # type: ignore[return-value]

    def gradients(self, step: TrainingStep, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: 0.9 * gradient for name, gradient in gradients.items()}


class Pulled(GMP):
    """Weights are pulled towards 0, and the learning rate is multiplied."""

    def __init__(self, factor: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.factor, self.rate = factor, rate

    def penalty(self, step: TrainingStep) -> Tensor:
        return self.factor * sum(weight.square().sum() for weight in step.weights.values())  # type: ignore[return-value]

    def learning_rate(self, stage: Stage) -> Schedule:
        usual = super().learning_rate(stage)
        return Schedule(lambda done: self.rate * usual(done), usual.restarts)


def far(left: State, right: State) -> float:
    """Relative L2 distance of the floating-point tensors."""
    one, two = left.named(), right.named()
    names = [name for name, tensor in one.items() if tensor.is_floating_point()]
    apart = sum(float((one[n].double() - two[n].double()).square().sum()) for n in names)
    return (apart / sum(float(one[n].double().square().sum()) for n in names)) ** 0.5


def candidates(setup: Setup) -> list[State]:
    """The replicas of the second segment, which start from one parent, whatever trained the first."""
    first, second = setup.plan[:2]
    with job(setup) as running:
        segment, at = loop.prune_parent(running, first, first_progress(setup))
        at = loop.train_replicas(replace(running, executor=sequential.train_replicas), segment, at)
        at = loop.evaluate(running, segment, loop.merge_candidates(running, segment, at))
        segment, at = loop.prune_parent(running, second, at)
        at = loop.train_replicas(running, segment, at)
        return [state_of(at.parent, candidate) for candidate in at.candidates]


def test_a_replica_is_measured_as_its_soup_is() -> None:
    """With BatchNorm of the same images; otherwise averaging would seem to help where only measuring does."""
    setup = tiny_setup()
    first, *_ = setup.plan
    with job(setup) as running:
        segment, at = loop.prune_parent(running, first, first_progress(setup))
        at = loop.train_replicas(running, segment, at)
        for candidate in at.candidates:
            state = state_of(at.parent, candidate)
            measured = setup.recalibrated(state)
            assert_equal(dict(sorted(state.tensors.items())), dict(sorted(measured.tensors.items())))
            assert setup.score(measured, "held_out") == candidate.score


def test_measuring_batchnorm_again_changes_no_weight() -> None:
    again, averaged = (
        candidates(tiny_setup(merge=NoMerge(), replicas=ReplicasConfig(1, batchnorm=batchnorm)))[0]
        for batchnorm in ("recalibrate", "average")
    )
    assert_equal(again.weights, averaged.weights)
    assert not torch.equal(again.tensors["bn1.running_var"], averaged.tensors["bn1.running_var"])


FAST = ("drawn",)  # all that a method may do to a step


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow) for m in (*METHODS, "drawn")]
)
def test_stacked_replicas_agree_with_replicas_one_after_another(method: str) -> None:
    """Over a segment of 5 to 24 steps: 1e-4 of the weights' norm, and the zeros exactly the same."""
    make: Callable[[], PruningMethod] = {**METHODS, "drawn": Drawn}[method]
    changes: dict[str, Any] = {"optimizer": OptimizerConfig(lr=0.005), "channels_last": False, "sparsity": 0.5}
    stacked = candidates(tiny_setup(make(), replicas=LOCKSTEP, **changes))
    alone = candidates(tiny_setup(make(), replicas=replace(LOCKSTEP, executor="sequential"), **changes))
    assert len(stacked) == len(alone) == 3
    for one, other in zip(stacked, alone, strict=True):
        assert far(one, other) < 1e-4
        assert one.optimizer.keys() == other.optimizer.keys()
    for one, other in itertools.combinations(stacked, 2):
        assert far(one, other) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vary", "values"),
    [
        *((axis, None) for axis in ("lr", "weight_decay", "subsample", "label_smoothing", "augment")),
        ("method.factor", [0.0, 0.01, 0.05]),
        ("method.rate", [0.5, 1.0, 2.0]),
    ],
)
def test_stacked_replicas_may_differ_in_more_than_their_seed(vary: str, values: Any) -> None:
    method = Pulled() if vary.startswith("method.") else GMP()
    shared = replace(LOCKSTEP, vary=vary, values=values)
    changes: dict[str, Any] = {"optimizer": OptimizerConfig(lr=0.005), "channels_last": False}
    stacked = candidates(tiny_setup(method, replicas=shared, **changes))
    alone = candidates(tiny_setup(method, replicas=replace(shared, executor="sequential"), **changes))
    assert all(far(one, other) < 1e-4 for one, other in zip(stacked, alone, strict=True))
    usual = candidates(tiny_setup(method, replicas=replace(LOCKSTEP, executor="sequential"), **changes))
    assert any(far(one, other) > 0.0 for one, other in zip(alone, usual, strict=True))


@pytest.mark.slow
def test_adam_and_clipping_work_on_stacked_replicas() -> None:
    changes: dict[str, Any] = {"optimizer": OptimizerConfig("adamw", 0.002, clip_norm=0.5), "channels_last": False}
    stacked = candidates(tiny_setup(replicas=LOCKSTEP, **changes))
    alone = candidates(tiny_setup(replicas=replace(LOCKSTEP, executor="sequential"), **changes))
    assert all(
        far(one, other) < 2e-3 for one, other in zip(stacked, alone, strict=True)
    )  # Adam divides by small numbers


@pytest.mark.slow
def test_a_stopped_lockstep_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(out=tmp_path / "whole", replicas=LOCKSTEP)
    fit(config)
    out = str(tmp_path / "cut")
    steps = 0

    def counted(self: vectorized.Lockstep, *arguments: Any) -> None:
        nonlocal steps
        original(self, *arguments)
        steps += 1
        if steps in (13, 30):
            signal.raise_signal(signal.SIGTERM)

    original = vectorized.Lockstep.step
    monkeypatch.setattr(vectorized.Lockstep, "step", counted)
    for _ in range(2):
        with pytest.raises(Stopped):
            fit(replace(config, out=out, resume=True))
    fit(replace(config, out=out, resume=True))
    for file in ("model/model.safetensors", "masks.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert rows(tmp_path / "cut")[:-1] == rows(tmp_path / "whole")[:-1]


def test_a_replica_that_goes_wrong_is_tried_again_alone_and_does_not_disturb_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(self: Any, now: TrainingStep) -> None:
        original(self, now)
        if self.weight_decay == 0.5:  # the middle replica, on every attempt
            for weight in self.weights.values():
                weight.data.mul_(float("nan"))

    shared = replace(LOCKSTEP, vary="weight_decay", values=[1e-4, 0.5, 1e-3])
    original = MaskedStep.update
    monkeypatch.setattr(MaskedStep, "update", spoiled)
    fit(tiny_config(OneShot(), out=tmp_path / "run", replicas=shared, epochs=2))
    faults = [(row["replica"], row["attempt"]) for row in rows(tmp_path / "run", "fault") if row["segment"] == 1]
    assert faults == [(1, 0), (1, 1)]
    assert all(row["ingredients"] == [0, 2] for row in rows(tmp_path / "run", "merge"))


def test_why_replicas_are_not_stacked_is_said() -> None:
    def choice(**changes: Any) -> tuple[Any, str]:
        return choose_executor(tiny_setup(replicas=replace(LOCKSTEP, **changes)))

    assert choice() == (vectorized.train_replicas, "")
    assert choice(executor="sequential") == (sequential.train_replicas, "")
    for changes, parts in (
        ({"vary": "epochs"}, ["one after another", "length"]),
        ({"vary": "subsample", "values": [0.05, 0.8, 1.0]}, ["one after another", "20 and 50 images"]),
        ({"executor": "auto"}, ["one after another", "CPU"]),
    ):
        executor, why = choice(**changes)
        assert executor is sequential.train_replicas
        assert all(part in why for part in parts), why


def test_a_model_that_does_not_vectorise_is_trained_one_after_another() -> None:
    setup = tiny_setup(replicas=LOCKSTEP)

    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = setup.model

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) if images.sum() > -1e9 else images  # depends on the data

    prunable = tuple(f"inner.{name}" for name in setup.prunable)
    executor, why = choose_executor(replace(setup, model=Looks(), prunable=prunable))
    assert executor is sequential.train_replicas
    assert "does not go through torch.func.vmap" in why


# --- precision and compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), BatchNormAct2d(4), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stacked_layers_take_half_precision(layer: nn.Module, dtype: torch.dtype) -> None:
    """As CUDA's autocast hands it to the layers of a stack; the result is that of float32, in the input's type."""
    model = nn.Sequential(layer)
    setup = replace(tiny_setup(replicas=LOCKSTEP, precision="bf16"), model=model)
    lockstep = vectorized.Lockstep(setup, 2)
    images = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    stacked = lockstep.forward(lockstep.weights, lockstep.buffers, images)
    for row, part, copied in zip(stacked, images, lockstep.models, strict=True):
        assert row.dtype is dtype
        alone = copy.deepcopy(model)
        torch.testing.assert_close(row, alone(part.float()).to(dtype))
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(copied.get_buffer(name), buffer)


@pytest.mark.slow
def test_without_a_compiler_nothing_is_compiled_and_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    environment = {"PATH": str(tmp_path / "empty"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "sparsekit", "fit", *ARGUMENTS, "--device", "cpu", "--compile", "true"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert all(part in done.stderr for part in ("sparsekit: error: --compile", "g++"))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gmp", "dpf"])
def test_half_precision_keeps_masks_exact_and_resumes_with_its_scaler(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(METHODS[method](), out=tmp_path / "whole", precision="fp16")
    summary = fit(config)
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)
    steps = 0

    def counted(self: MaskedStep, now: TrainingStep) -> None:
        nonlocal steps
        original(self, now)
        steps += 1
        if steps == 37:
            assert 1.0 <= self.scaler.get_scale() <= 2**17
            signal.raise_signal(signal.SIGTERM)

    original = MaskedStep.update
    monkeypatch.setattr(MaskedStep, "update", counted)
    with pytest.raises(Stopped):
        fit(replace(config, out=str(tmp_path / "cut")))
    fit(replace(config, out=str(tmp_path / "cut"), resume=True))
    for file in ("model/model.safetensors", "masks.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_overflow_in_half_precision_skips_the_step_and_lowers_the_scale(name: str) -> None:
    """The first one and a later one, which a fused optimizer skips itself."""
    setup = tiny_setup(precision="fp16", optimizer=optimizer(name))
    parent = first_progress(setup).parent
    built = optimizers.build(setup.config.optimizer, setup.model, {}, 0.1, 0.0)
    step = MaskedStep(setup, setup.model, parent, {}, built, 0.0)
    names = optimizers.names_of(built, setup.model, {})
    images, labels = next(iter(setup.data.train_batches(0, 1)))
    for group in built.param_groups:
        group["lr"] = 0.1
    for scale in (2.0**15, 2.0**14):
        weights = {name: weight.detach().clone() for name, weight in step.weights.items()}
        state = optimizers.export(built, names)
        step(images * 1e30, labels, 0.0)
        assert_equal(step.weights, weights)
        assert_equal(optimizers.export(built, names), state)
        assert step.scaler.get_scale() == scale
        step(images, labels, 0.0)
        assert differ(step.weights, weights)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gmp", "dpf"])
@pytest.mark.parametrize("executor", ["sequential", "vectorized"])
def test_a_compiled_step_is_compiled_once_for_all_prunings(method: str, executor: Any, tmp_path: Path) -> None:
    """torch's own count of compiled graphs stays where the first trained segments left it."""
    from torch._dynamo.utils import counters

    replicas = replace(LOCKSTEP, count=2, executor=executor, start=0.3)
    made: list[int] = []
    torch._dynamo.reset()
    setup = prepare(tiny_config(METHODS[method](), replicas=replicas, compile=True, precision="fp32"))
    counters.clear()  # the setup compiled something small, to see that it can
    with job(setup) as running:
        at = first_progress(setup)
        for segment in setup.plan:
            segment, at = loop.prune_parent(running, segment, at)
            at = loop.merge_candidates(running, segment, loop.train_replicas(running, segment, at))
            at = loop.evaluate(running, segment, at)
            made.append(counters["stats"]["unique_graphs"])
    assert len(made) > 3
    assert made[0] >= 1
    first = next(i for i, segment in enumerate(setup.plan) if segment.stage.start >= 0.3 * setup.config.epochs)
    assert made[first] == made[-1] <= 3


@pytest.mark.slow
def test_a_compiled_run_agrees_with_a_plain_one() -> None:
    changes: dict[str, Any] = {"optimizer": OptimizerConfig(lr=0.05)}
    plain = candidates(tiny_setup(replicas=replace(LOCKSTEP, executor="sequential"), **changes))
    compiled = candidates(tiny_setup(replicas=replace(LOCKSTEP, executor="sequential"), compile=True, **changes))
    assert all(far(one, other) < 1e-3 for one, other in zip(plain, compiled, strict=True))
    assert any(far(one, other) > 0.0 for one, other in zip(plain, compiled, strict=True))


@pytest.mark.cuda
def test_stacked_replicas_agree_on_cuda() -> None:
    changes: dict[str, Any] = {"optimizer": OptimizerConfig(lr=0.05), "device": "cuda", "precision": "fp32"}
    stacked = candidates(tiny_setup(replicas=LOCKSTEP, **changes))
    alone = candidates(tiny_setup(replicas=replace(LOCKSTEP, executor="sequential"), **changes))
    assert all(far(one, other) < 1e-2 for one, other in zip(stacked, alone, strict=True))


def test_dropout_draws_for_every_replica() -> None:
    model = ModelConfig(
        "vit_tiny_patch16_224",
        kwargs={"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2, "drop_rate": 0.3},
    )
    setup = tiny_setup(replicas=LOCKSTEP, model=model)
    lockstep = vectorized.Lockstep(setup, 2)
    images, _ = next(iter(setup.data.evaluation_batches("held_out")))
    for model in lockstep.models:
        model.train()
    logits = lockstep.forward(lockstep.weights, lockstep.buffers, torch.stack([images[:8], images[:8]]))
    assert not torch.allclose(logits[0], logits[1])


def test_half_precision_on_a_cpu_is_not_stacked_which_would_drop_it() -> None:
    assert "fp32" in vectorized.obstacle(tiny_setup(replicas=LOCKSTEP, precision="bf16"))
    assert vectorized.obstacle(tiny_setup(replicas=LOCKSTEP)) == ""
