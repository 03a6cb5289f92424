"""Three replicas on one device: one after another or stacked, both as CUDA graphs too, and as three ranks of torchrun.

What is measured are training steps a second. Batches are drawn and augmented as in a run. Ranks are held against rank 0
alone, while the others wait.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
import torch.distributed as dist
from _gpu import REPLICAS, Part, failed, in_ranks, tell
from _measure import alternate, ratio
from _training import LONG, seconds, setup_of, trainings

from sparsekit.config.options import ModelConfig
from sparsekit.executors.stacked import Lockstep, obstacle
from sparsekit.training.replica import Training
from sparsekit.training.setup import Setup

PIXELS = 32
MODELS = {
    "0.3 M": ModelConfig("cifar_resnet20"),
    "0.9 M": ModelConfig("cifar_resnet56"),
    "2.8 M": ModelConfig("cifar_resnet18", kwargs={"channels": [32, 64, 128, 256]}),
    "11 M": ModelConfig("cifar_resnet18"),
}
QUICK = {"0.1 M": ModelConfig("cifar_resnet20", kwargs={"depth": 8})}
BATCHES = (50, 128, 512)
RUN_SECONDS = 0.3
"""How long the steps of a run take in one round."""
Step = Callable[[], object]


def alone(setup: Setup) -> Step:
    """A step of one replica; three take three times as long."""
    (training,) = trainings(setup, LONG)
    batches = training.batches()
    return warm(setup, training, lambda: training.step(*next(batches)))


def stacked(setup: Setup) -> Step:
    """A step of three replicas in lockstep."""
    if reason := obstacle(setup):
        raise RuntimeError(f"they cannot be stacked, {reason}")
    lockstep = Lockstep(setup, REPLICAS)
    replicas = trainings(setup, LONG, lockstep.models)
    batches = zip(*(training.batches() for training in replicas), strict=True)

    def step() -> None:
        pairs = next(batches)
        lockstep.step(replicas, [images for images, _ in pairs], [labels for _, labels in pairs])

    return warm(setup, lockstep, step)


def warm(setup: Setup, taker: Training | Lockstep, step: Step) -> Step:
    """The step, which is a CUDA graph from here on where the setup has them.

    Raises:
        RuntimeError: it could not be recorded.
    """
    if setup.config.cuda_graphs:
        seconds(step, 4)
        if not (taker.graphed and taker.graphed.graph):
            raise RuntimeError(f"steps are not recorded, {taker.graphed.obstacle if taker.graphed else ''}")
    return step


WAYS: dict[str, tuple[Callable[[Setup], Step], int, bool]] = {
    "stacked": (stacked, REPLICAS, False),
    "graphs": (alone, 1, True),
    "stacked graphs": (stacked, REPLICAS, True),
}
"""What is held against one after another in one process: how a step is made, of how many replicas, whether recorded."""


def measure(part: Part) -> None:
    """A row a way, number of parameters and batch size."""
    models, batches = (QUICK, (16,)) if part.quick else (MODELS, BATCHES)
    cases = {f"{size}, batch {batch}": (model, batch) for size, model in models.items() for batch in batches}
    if "RANK" in os.environ:
        rank(part, cases)
        return
    half = Part(part.until - 0.4 * part.left, part.quick, part.data)
    half.each(cases, lambda what, case, until: in_one_process(part, what, case, until))
    if wrong := in_ranks("replicas", part):
        tell("three ranks", failed(wrong))


def in_one_process(part: Part, what: str, case: tuple[ModelConfig, int], until: float) -> None:
    """One after another against each other way."""
    model, batch = case
    setup = setup_of(model, batch, PIXELS)
    single, others = alone(setup), {}
    for way, (make, share, graphs) in WAYS.items():
        network = copy.deepcopy(setup.model)
        try:
            others[way] = make(replace(setup, model=network, config=replace(setup.config, cuda_graphs=graphs))), share
        except RuntimeError as error:
            tell(f"{way}, {what}", failed(error))
    count = steps_of(single)
    runs = {way: lambda step=step, share=share: seconds(step, count) / share for way, (step, share) in others.items()}
    runs |= {"alone": lambda: seconds(single, count)}
    times = alternate(runs, 2 if part.quick else 20, 1, until)
    for way in others:
        compare(f"{way}, {what}", times[way], times["alone"])


def compare(what: str, times: list[float], single: list[float]) -> None:
    """Tell steps a second of all replicas, from the seconds of one replica's step."""
    compared = ratio(single, times)
    ours, theirs = (f"{1.0 / median(each):,.1f} steps/s" for each in (times, single))
    tell(
        f"three replicas, {what}", ours, "one after another", theirs, f"{compared} times its steps/s",
        compared.pairs, times=times, alone=single,
    )  # fmt: skip


def steps_of(step: Step) -> int:
    """How many steps take a run's time, after two that are not counted."""
    seconds(step, 2)
    return max(2, min(200, round(RUN_SECONDS / seconds(step, 3))))


def rank(part: Part, cases: dict[str, tuple[ModelConfig, int]]) -> None:
    """What each rank does: all at once against rank 0 alone. All take part in every decision."""
    dist.init_process_group("gloo")
    leads = dist.get_rank() == 0

    def agreed(value: float) -> float:
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    for index, (what, (model, batch)) in enumerate(cases.items()):
        until = time.monotonic() + agreed(part.left) / (len(cases) - index)
        if agreed(part.left) <= 0.0:
            if leads:
                tell(f"three replicas, three ranks, {what}", "not measured: no time was left")
            continue
        step = alone(setup_of(model, batch, PIXELS, replicas=1))
        count = int(agreed(steps_of(step)))
        together: list[float] = []
        single: list[float] = []
        for number in range(2 if part.quick else 20):
            if not agreed(number == 0 or time.monotonic() < until):
                break
            dist.barrier()
            if leads:
                single.append(seconds(step, count))
            dist.barrier()
            together.append(seconds(lambda step=step, count=count: all_ranks(step, count), 1) / count / REPLICAS)
        if leads:
            compare(f"three ranks, {what}", together, single)
    dist.destroy_process_group()


def all_ranks(step: Step, count: int) -> None:
    """So many steps of this rank, and the wait for the others."""
    seconds(step, count)
    dist.barrier()
