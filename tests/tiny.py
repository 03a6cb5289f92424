"""A small model on small digits, and the run around it, for tests that train."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekit.api import Budget, MergeStrategy, PruningMethod, Schedule, Segment, Stage
from sparsekit.config.options import (
    DataConfig,
    EvaluationConfig,
    FitConfig,
    ModelConfig,
    OptimizerConfig,
    ReplicasConfig,
    WandbConfig,
)
from sparsekit.merges.best import Best
from sparsekit.merges.greedy import Greedy
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.bimp import BIMP
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.state import State
from sparsekit.planning.replicas import Replica, replicas_of
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.training.prepare import prepare
from sparsekit.training.replica import Progress, Training, train
from sparsekit.training.setup import Setup

METHODS: dict[str, Callable[[], PruningMethod]] = {"gmp": GMP, "imp": IMP, "bimp": BIMP, "dpf": DPF, "oneshot": OneShot}
MERGES: dict[str, Callable[[], MergeStrategy]] = {"uniform": Uniform, "greedy": Greedy, "best": Best, "none": NoMerge}

# 12,472 prunable weights of 12,890, in fourteen layers
KWARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
ARGUMENTS = [
    "--wandb.mode",
    "disabled",
    "--evaluation.report",
    "false",
    "--data.image_size",
    "8",
    "--model.kwargs",
    json.dumps(KWARGS),
]


class OnePrune(PruningMethod):
    """Train dense for `dense` epochs, prune once, and go on with one schedule and optimizer."""

    def __init__(self, dense: float = 1.0) -> None:
        self.dense = dense

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(0.0, self.dense), Segment(budget.sparsity, budget.epochs - self.dense))


class Rewinding(PruningMethod):
    """Two epochs of dense training, then two rounds that prune and go back to the end of the first epoch."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        epochs = (budget.epochs - 2.0) / 2
        half = 1 - (1 - budget.sparsity) ** 0.5
        rounds = Segment(half, epochs, rewind=1), Segment(budget.sparsity, epochs, rewind=1)
        return (Segment(0.0, 1.0), Segment(0.0, 1.0), *rounds)

    def learning_rate(self, stage: Stage) -> Schedule:
        return Schedule(stage.budget.rate)


def tiny_config(
    method: PruningMethod | None = None,
    merge: MergeStrategy | None = None,
    out: Path | None = None,
    replicas: ReplicasConfig | None = None,
    **changes: Any,
) -> FitConfig:
    """Six epochs with two replicas from the start, on digits of 8×8 pixels."""
    config = FitConfig(
        method or GMP(),
        merge or Uniform(),
        epochs=6,
        replicas=replicas or ReplicasConfig(count=2, start=0.0),
        model=ModelConfig(kwargs=KWARGS),
        data=DataConfig(image_size=8),
        wandb=WandbConfig("disabled"),
        evaluation=EvaluationConfig(report=False),
        device="cpu",
        out=str(out) if out else None,
    )
    return replace(config, **changes)


def tiny_setup(method: PruningMethod | None = None, merge: MergeStrategy | None = None, **changes: Any) -> Setup:
    return prepare(tiny_config(method, merge, **changes))


def optimizer(name: str = "sgd", lr: float = 0.05, **changes: Any) -> OptimizerConfig:
    return OptimizerConfig(name, lr, **changes)


def with_steps(setup: Setup, *steps: int) -> Setup:
    """The same with other numbers of optimizer steps in its segments."""
    return replace(setup, plan=tuple(replace(s, steps=n) for s, n in zip(setup.plan, steps, strict=True)))


def quiet(progress: Progress) -> None:
    """Take a training report and say nothing."""


def pruned(setup: Setup, parent: State, index: int) -> tuple[State, Stage]:
    """The parent pruned for one segment, as the scheduler does it."""
    config = setup.config
    return prune(config.method, parent, setup.plan[index].stage, config.masks, config.seed)


def trained(
    setup: Setup,
    parent: State,
    stage: Stage,
    replica: Replica | int = 0,
    schedule: Schedule | None = None,
    report: Callable[[Progress], None] = quiet,
) -> State:
    """One replica through one segment, as the scheduler does it."""
    if isinstance(replica, int):
        replica = replicas_of(setup.config, stage)[replica]
    work = Training(setup, parent, stage, replica, schedule or setup.method.learning_rate(stage))
    return train(work, report)


def dense_then_pruned(setup: Setup) -> tuple[State, Stage]:
    """The second segment's pruned parent, after training replica 0 through the first."""
    parent, stage = pruned(setup, first_progress(setup).parent, 0)
    return pruned(setup, trained(setup, parent, stage), 1)


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Same names in the same order, same types, same bits."""
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype is right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def differ(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(tensor, right[name]) for name, tensor in left.items())


def masked_are_zero(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> bool:
    return all(not weights[name][~mask].any() for name, mask in masks.items())


def rows(out: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [row for row in found if event in (None, row["event"])]
