"""Replicas about to be trained, for the benchmarks that time real training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsekit.api import Budget, PruningMethod, Segment
from sparsekit.config.options import DataConfig, FitConfig, ModelConfig, OptimizerConfig, ReplicasConfig
from sparsekit.data import ImageData
from sparsekit.merges.uniform import Uniform
from sparsekit.models.create import build_model
from sparsekit.models.device import use_precision
from sparsekit.planning.plan import make_plan, make_stages
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.training.replica import Training
from sparsekit.training.setup import Setup

SPARSITY = 0.9
LONG = 1_000_000
"""Steps of a training that is timed, and never comes to its end."""


class Once(PruningMethod):
    """Prune at the start, then train."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)


def setup_of(
    model: ModelConfig, batch: int, pixels: int, precision: str = "auto", replicas: int = 3, **changes: Any
) -> Setup:
    """What a run on the first CUDA device works with, its data random colour images of ten classes."""
    device, images = torch.device("cuda:0"), max(batch, 512)
    config = FitConfig(
        Once(), Uniform(), sparsity=SPARSITY, epochs=10,
        replicas=ReplicasConfig(replicas, start=0.0, batchnorm="average"), model=model,
        data=DataConfig(batch_size=batch, image_size=pixels), optimizer=OptimizerConfig(lr=0.01), device="cuda",
        precision=precision, cuda_graphs=False,
    )  # fmt: skip
    config = replace(config, **changes)
    splits = {
        name: (torch.randint(256, (count, 3, pixels, pixels), dtype=torch.uint8), torch.randint(10, (count,)))
        for name, count in (("train", images), ("held_out", 16), ("test", 16))
    }
    data = ImageData(
        splits, num_classes=10, batch_size=batch, shift=pixels // 8, flip=True, device=device, channels_last=True
    )  # fmt: skip
    dtype = use_precision(precision, device)
    network = build_model(model, 10, 3, 0).to(device).to(memory_format=torch.channels_last)
    plan = make_plan(config, make_stages(config), data.steps_per_epoch)
    return Setup(config, plan, data, network, tuple(masks.prunable_names(network)), device, dtype)


def trainings(setup: Setup, steps: int, models: list[nn.Module] | None = None) -> list[Training]:
    """Replicas about to be trained for so many steps, their masks in place: one, or one a model."""
    segment = replace(setup.plan[0], steps=steps)
    setup = replace(setup, plan=(segment, *setup.plan[1:]))
    parent, stage = prune(setup.method, first_progress(setup).parent, segment.stage, setup.config.masks, 0)
    schedule, chosen = setup.method.learning_rate(stage), models or [setup.model]
    return [
        Training(setup, parent, stage, replica, schedule, model=model)
        for replica, model in zip(segment.replicas, chosen, strict=False)
    ]


def seconds(step: Callable[[], object], steps: int) -> float:
    """Seconds of a step, the mean of so many on end, with the wait for the device."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps
