"""What one step costs the host: prints launches, waits for the device and pageable copies, as JSON by kind of step."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import optimizer, pruned, tiny_setup

from sparsekit.config.options import ReplicasConfig
from sparsekit.evaluation.batchnorm import recalibrate_batchnorm
from sparsekit.executors.stacked import Lockstep
from sparsekit.planning.replicas import replicas_of
from sparsekit.run.progress import first_progress
from sparsekit.training import optimizers
from sparsekit.training.replica import Training

KINDS = ("launches", "waits", "pageable")
COUNTS = {kind: ctypes.c_long.in_dll(ctypes.CDLL(None), f"nullcuda_{kind}") for kind in KINDS}
STEPS = 5


def cost(step: Callable[[], object]) -> dict[str, float]:
    """Mean counts of a step, after two that are not counted."""
    step(), step()
    before = {kind: count.value for kind, count in COUNTS.items()}
    for _ in range(STEPS):
        step()
    return {kind: (count.value - before[kind]) / STEPS for kind, count in COUNTS.items()}


setup = tiny_setup(
    device="cuda", precision=sys.argv[1], optimizer=optimizer(), replicas=ReplicasConfig(2, start=0.0), epochs=60
)
parent, stage = pruned(setup, first_progress(setup).parent, 1)
replicas, schedule = replicas_of(setup.config, stage), setup.method.learning_rate(stage)
images, labels = next(iter(setup.data.train_batches(0, 1)))


def bare() -> Callable[[], object]:
    """A step as a few lines of torch take it."""
    model = setup.model.train()
    sgd = optimizers.build(setup.config.optimizer, model, {}, 0.05, 5e-4)

    def step() -> None:
        with setup.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()

    return step


def masked() -> Callable[[], object]:
    training = Training(setup, parent, stage, replicas[0], schedule)
    batches = training.batches()
    return lambda: training.step(*next(batches))


def stacked() -> Callable[[], object]:
    lockstep = Lockstep(setup, 2)
    pairs = zip(replicas, lockstep.models, strict=True)
    trainings = [Training(setup, parent, stage, each, schedule, model=model) for each, model in pairs]
    batches = zip(*(training.batches() for training in trainings), strict=True)

    def step() -> None:
        (first, one), (second, two) = next(batches)
        lockstep.step(trainings, [first, second], [one, two])

    return step


def recalibration() -> Callable[[], object]:
    return lambda: recalibrate_batchnorm(setup.model, [(images, labels)] * 10, setup.autocast())


def upload() -> Callable[[], object]:
    """What no step should do."""
    return lambda: torch.ones(3).to(setup.device)


print(json.dumps({make.__name__: cost(make()) for make in (bare, masked, stacked, recalibration, upload)}))
