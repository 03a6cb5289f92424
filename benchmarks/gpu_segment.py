"""A segment's end on the device, phase by phase: segment_end.py's phases, and the ways to the device and back.

Each phase is waited for, the device and the files, which a run writes beside the training.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from _gpu import Part, tell
from _training import setup_of
from segment_end import REPLICAS, Phases, end

from sparsekit.config.options import ModelConfig, OptimizerConfig
from sparsekit.methods.gmp import GMP
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.training.replica import Training

MODELS = {
    "ResNet-50, SGD": (ModelConfig("resnet50"), 224, OptimizerConfig(lr=0.01)),
    "ViT-B/16, AdamW": (ModelConfig("vit_base_patch16_224"), 224, OptimizerConfig("adamw", 1e-4)),
}
QUICK = {"ResNet-8, SGD": (ModelConfig("cifar_resnet20", kwargs={"depth": 8}), 32, OptimizerConfig(lr=0.01))}
BATCH, ROUNDS = 8, 5


def clock() -> float:
    """Wall time, the device waited for."""
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(part: Part) -> None:
    """A row a model and phase."""

    def one(what: str, case: tuple[ModelConfig, int, OptimizerConfig], until: float) -> None:
        model, pixels, optimizer = case
        setup = setup_of(model, BATCH, pixels, replicas=REPLICAS, method=GMP(), optimizer=optimizer)
        stages = [segment.stage for segment in setup.plan]
        parent, stage = prune(setup.method, first_progress(setup).parent, stages[0], setup.config.masks, 0)
        schedule, batches = setup.method.learning_rate(stage), list(setup.data.train_batches(0, 1))
        rounds: list[dict[str, float]] = []
        while not rounds or (len(rounds) < (1 if part.quick else ROUNDS) and time.monotonic() < until):
            phases, states = Phases(clock), []
            for replica in setup.plan[0].replicas:
                make = partial(Training, setup, parent, stage, replica, schedule)
                training = phases.run("replicas to the device", make)
                training.step(*batches[0])
                states.append(phases.run("replicas from the device", training.result))
            with tempfile.TemporaryDirectory() as folder:
                following = end(setup, parent, states, stages, Path(folder), phases)
            phases.run("soup to the device", partial(setup.install, following))
            rounds.append(phases.seconds)
        for phase in rounds[0]:
            times = [each[phase] for each in rounds]
            tell(f"segment's end, {what}: {phase}", f"{median(times):.3f} s", rounds=len(rounds), times=times)
        times = [sum(each.values()) for each in rounds]
        tell(f"segment's end, {what}: all", f"{median(times):.3f} s", rounds=len(rounds), times=times)

    part.each(QUICK if part.quick else MODELS, one)
