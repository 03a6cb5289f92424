"""Replicas stacked and trained in lockstep on one device: one forward and backward pass for all of them.

Each replica is an ordinary `Training` on a model of its own, whose tensors are rows of stacked ones: only the forward
and backward pass is shared, by `torch.func.vmap` over the rows. Weights agree with those of replicas trained one after
another but for rounding; dropout and stochastic depth draw other numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sparsekit._types import Tensors
from sparsekit.api import Stage
from sparsekit.errors import first_line
from sparsekit.executors import sequential
from sparsekit.planning.replicas import Replica
from sparsekit.run.context import RunContext
from sparsekit.run.progress import RunProgress
from sparsekit.seeds import derive
from sparsekit.training.replica import NonFinite, Training
from sparsekit.training.setup import Setup


def train_replicas(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
    """Train replicas of one segment in lockstep; what goes wrong in one is tried again alone, with another seed."""
    done = {(u.attempt, u.done) for r in replicas if (u := at.underway.get(r.index))}
    begun = [r for r in replicas if r.index in at.underway]
    together = len(replicas) > 1 and (not begun or (len(begun) == len(replicas) and len(done) == 1))
    if not together or any(attempt for attempt, _ in done):
        return sequential.train_replicas(context, stage, replicas, at)
    schedule = context.setup.method.learning_rate(stage)
    lockstep = Lockstep(context.setup, len(replicas))
    trainings = [
        Training(context.setup, at.parent, stage, replica, schedule, model=model)
        for replica, model in zip(replicas, lockstep.models, strict=True)
    ]
    if not begun:
        torch.manual_seed(derive(context.setup.config.seed, "segment", stage.index, "vectorized"))
    for training in trainings:
        if underway := at.underway.get(training.replica.index):
            training.restore(underway)
    with context.signals.deferred():
        faults = _train(context, stage, lockstep, trainings, at)
    for training in trainings:
        index = training.replica.index
        try:
            if index in faults:
                raise faults[index]
            trained = sequential.scored(context.setup, training.result())
            at = sequential.settle(context, stage, training.replica, trained, at)
        except NonFinite as fault:
            sequential.log_fault(context, stage, training, fault, at)
            again = Training(context.setup, at.parent, stage, training.replica, schedule, attempt=1)
            at = replace(at, underway={**at.underway, index: again.snapshot()})
    context.keep(at)  # all at once: a part of them trained again in lockstep would not give the same bits
    context.signals.stop()
    return sequential.train_replicas(context, stage, [r for r in replicas if r.index not in at.finished], at)


def _train(
    context: RunContext, stage: Stage, lockstep: Lockstep, trainings: Sequence[Training], at: RunProgress
) -> dict[int, NonFinite]:
    """Train to the end of the segment; which replicas went wrong, by index. They do not disturb the others."""
    faults: dict[int, NonFinite] = {}

    def snapshots() -> RunProgress:
        return replace(at, underway={**at.underway, **{t.replica.index: t.snapshot() for t in trainings}})

    for batches in zip(*(training.batches() for training in trainings), strict=True):
        lockstep.step(trainings, [images for images, _ in batches], [labels for _, labels in batches])
        for training in trainings if trainings[0].due else ():
            try:
                now = training.report()
            except NonFinite as fault:
                faults.setdefault(training.replica.index, fault)
                continue
            if training.replica.index not in faults:
                sequential.report(context, stage, training.replica, at, now)
        if len(faults) == len(trainings):
            break
        if trainings[0].done < trainings[0].steps:
            context.pause(snapshots)
    return faults


class Lockstep:
    """Copies of the working model whose tensors are rows of stacked ones, and the step that they take together.

    Attributes:
        models: One copy a replica.
    """

    def __init__(self, setup: Setup, count: int) -> None:
        self.setup = setup
        self.models = [copy.deepcopy(setup.model).to(memory_format=torch.contiguous_format) for _ in range(count)]
        with torch.no_grad():
            self.weights = _stack([dict(model.named_parameters()) for model in self.models])
            self.buffers = _stack([dict(model.named_buffers()) for model in self.models])
        for i, model in enumerate(self.models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.data = {**self.weights, **self.buffers}[name][i]
        for weight in self.weights.values():
            weight.requires_grad_()
        parameters = [dict(model.named_parameters()) for model in self.models]
        self.rows = [(weight, [each[name] for each in parameters]) for name, weight in self.weights.items()]
        self.forward = vmap(partial(_forward, self.models[0]), randomness="different")
        if setup.config.compile:
            self.forward = torch.compile(self.forward)

    def step(self, trainings: Sequence[Training], images: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Train every replica on its batch."""
        steps = [training.take_step for training in trainings]
        now = [step.at(training.before()) for step, training in zip(steps, trainings, strict=True)]
        effective = [step.effective(each) for step, each in zip(steps, now, strict=True)]
        with self.setup.autocast():
            logits = self.forward({**self.weights, **_stack(effective)}, self.buffers, torch.stack(list(images)))
        losses = [
            self.setup.loss(rows, wanted, batch)
            for rows, wanted, batch in zip(logits.unbind(), labels, images, strict=True)
        ]
        for tensor in (*self.weights.values(), *(p for step in steps for p in step.parameters)):
            tensor.grad = None
        total = [step.objective(loss, each) for step, loss, each in zip(steps, losses, now, strict=True)]
        torch.stack(total).sum().backward()  # type: ignore[no-untyped-call]
        for shared, parameters in self.rows:
            if shared.grad is not None:
                for gradient, parameter in zip(shared.grad.unbind(), parameters, strict=True):
                    # a penalty's gradient came on its own way
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for i, (training, step) in enumerate(zip(trainings, steps, strict=True)):
            step.update(now[i])
            training.after(losses[i].detach())


def obstacle(setup: Setup) -> str:
    """Why this setup's replicas cannot be trained in lockstep; empty where they can."""
    if setup.config.replicas.vary == "epochs":
        return "as they differ in length"
    batches = {_batch(setup, replica) for segment in setup.plan for replica in segment.replicas}
    if len(batches) > 1:
        return f"as their batches differ in size ({min(batches)} and {max(batches)} images)"
    lockstep = Lockstep(setup, 2)
    for model in lockstep.models:
        model.train()
    images, _ = next(iter(setup.data.evaluation_batches("held_out")))
    state = torch.get_rng_state()
    try:
        with setup.autocast():
            logits = lockstep.forward(lockstep.weights, lockstep.buffers, torch.stack([images[:2], images[:2]]))
        logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        return f"as the model does not go through torch.func.vmap: {first_line(error)}"
    finally:
        torch.set_rng_state(state)
    return ""


def _batch(setup: Setup, replica: Replica) -> int:
    """Images a batch: a subset may hold fewer than a batch is to have."""
    images = max(round(replica.subsample * setup.data.train_size), setup.data.num_classes)
    return min(setup.data.batch_size, images if replica.subsample < 1.0 else setup.data.train_size)


def _forward(model: nn.Module, weights: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
    return functional_call(model, (weights, buffers), (images,))  # type: ignore[no-any-return]


def _stack(parts: Sequence[Tensors]) -> Tensors:
    """Tensors of the same names, stacked along a new first axis."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
