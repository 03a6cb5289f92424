"""What one step costs the host: prints launches, waits, pageable copies and bytes uploaded, as JSON by kind of step.

Arguments: the precision, the optimizer, and methods of which a step is counted too.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import child  # noqa: F401  (what cannot be computed under the stubs is mended there)
from tiny import optimizer, pruned, tiny_setup

import sparsekit
from sparsekit.api import PruningMethod
from sparsekit.config.options import DataConfig, ReplicasConfig
from sparsekit.evaluation.batchnorm import recalibrate_batchnorm
from sparsekit.evaluation.scores import score_model
from sparsekit.executors.stacked import Lockstep
from sparsekit.planning.replicas import replicas_of
from sparsekit.plugins.registry import find
from sparsekit.run.progress import first_progress
from sparsekit.training import optimizers
from sparsekit.training.masking import Masking
from sparsekit.training.replica import Training
from sparsekit.training.setup import Setup

KINDS = ("launches", "waits", "pageable", "uploaded")
COUNTS = {kind: ctypes.c_long.in_dll(ctypes.CDLL(None), f"nullcuda_{kind}") for kind in KINDS}


def cost(step: Callable[[], object], steps: int = 5) -> dict[str, float]:
    """Mean counts of a step, after two that are not counted."""
    step(), step()
    before = {kind: count.value for kind, count in COUNTS.items()}
    for _ in range(steps):
        step()
    return {kind: (count.value - before[kind]) / steps for kind, count in COUNTS.items()}


def setup_of(method: PruningMethod | None = None, graphs: bool = False) -> Setup:
    """A report is due at the end of an epoch or after 50 steps; in batches of 8 an epoch has as many."""
    return tiny_setup(
        method, device="cuda", precision=sys.argv[1], optimizer=optimizer(sys.argv[2]), epochs=60,
        replicas=ReplicasConfig(2, start=0.0), data=DataConfig(image_size=8, batch_size=8), cuda_graphs=graphs,
    )  # fmt: skip


def begun(setup: Setup, segment: int) -> Training:
    parent, stage = pruned(setup, first_progress(setup).parent, segment)
    return Training(setup, parent, stage, replicas_of(setup.config, stage)[0], setup.method.learning_rate(stage))


BUILT: list[torch.optim.Optimizer] = []
setup = setup_of()
images, labels = next(iter(setup.data.train_batches(0, 1)))


def bare() -> Callable[[], object]:
    """A step as a few lines of torch take it."""
    model = setup.model.train()
    built = optimizers.build(setup.config.optimizer, model, {}, 0.05, 5e-4)
    BUILT.append(built)

    def step() -> None:
        with setup.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        built.zero_grad(set_to_none=True)
        loss.backward()
        built.step()

    return step


def by_hand() -> Callable[[], object]:
    """The bare step with a pruner."""
    step = bare()
    pruner = sparsekit.Pruner(setup.model, BUILT[-1], epochs=1, steps_per_epoch=1000)

    def pruned() -> None:
        pruner.prune_if_due()
        step()

    return pruned


def masked() -> Callable[[], object]:
    training = begun(setup, 1)
    batches = training.batches()
    return lambda: training.step(*next(batches))


def recorded() -> Callable[[], object]:
    """From the fifth step on, where a step can be recorded."""
    training = begun(setup_of(graphs=True), 1)
    batches = training.batches()
    for _ in range(4):
        training.step(*next(batches))
    assert (training.graphed and training.graphed.graph) or sys.argv[1] == "fp16"
    return lambda: training.step(*next(batches))


def stacked(graphs: bool = False, uncounted: int = 0) -> Callable[[], object]:
    its = setup_of(graphs=graphs)
    lockstep = Lockstep(its, 2)
    parent, stage = pruned(its, first_progress(its).parent, 1)
    pairs = zip(replicas_of(its.config, stage), lockstep.models, strict=True)
    schedule = its.method.learning_rate(stage)
    trainings = [Training(its, parent, stage, each, schedule, model=model) for each, model in pairs]
    batches = zip(*(training.batches() for training in trainings), strict=True)

    def step() -> None:
        (first, one), (second, two) = next(batches)
        lockstep.step(trainings, [first, second], [one, two])

    for _ in range(uncounted):
        step()
    assert bool(lockstep.graphed and lockstep.graphed.graph) == (graphs and sys.argv[1] != "fp16")
    return step


def stacked_recorded() -> Callable[[], object]:
    """From the fifth step on, where a step can be recorded."""
    return stacked(graphs=True, uncounted=4)


def recalibration() -> Callable[[], object]:
    return lambda: recalibrate_batchnorm(setup.model, [(images, labels)] * 10, setup.autocast())


def score() -> Callable[[], object]:
    return lambda: score_model(setup.model, [(images, labels)] * 10, setup.autocast())


def upload() -> Callable[[], object]:
    """What no step should do."""
    return lambda: torch.ones(3).to(setup.device)


def new_masks() -> Callable[[], object]:
    """Masks go to the device as bools, a byte each."""
    weights = {name: setup.model.get_parameter(name) for name in setup.prunable}
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    assert all(weight.is_cuda for weight in weights.values())
    return lambda: Masking(setup.method, weights, masks, {}, 0.9, 0.0)


def trained(training: Training) -> Callable[[], object]:
    """A step as a run takes it, with the reports of the loss."""
    batches = training.batches()

    def step() -> None:
        training.step(*next(batches))
        if training.due:
            training.report()

    return step


kinds = (bare, masked, recorded, stacked, stacked_recorded, recalibration, score, upload, by_hand)
found = {make.__name__: cost(make()) for make in kinds}
found["new_masks"] = cost(new_masks()) | {"weights": sum(setup.model.get_parameter(n).numel() for n in setup.prunable)}
for name in sys.argv[3:]:
    its = setup_of(find("method", name).load()())
    found[name] = cost(trained(begun(its, 1)), 50)
    found[f"{name}, last segment"] = cost(trained(begun(its, len(its.plan) - 1)))
print(json.dumps(found))
