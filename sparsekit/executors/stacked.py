"""Train replicas in lockstep on one device: their tensors are stacked, and they share one forward and backward pass.

Each replica is an ordinary `Training` on its own model, whose tensors are rows of the stacked ones. Only the forward
and backward pass is shared, by `torch.func.vmap` over the rows. The weights equal those of sequential training up to
rounding; dropout and stochastic depth draw different numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sparsekit._types import Tensors
from sparsekit.api import Schedule, Stage
from sparsekit.errors import ReadError, first_line
from sparsekit.executors import sequential
from sparsekit.models.device import lacks_memory
from sparsekit.planning.replicas import Replica
from sparsekit.run.context import RunContext
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.seeds import derive
from sparsekit.training import graph
from sparsekit.training.graph import GraphedStep
from sparsekit.training.replica import NonFinite, Training
from sparsekit.training.setup import Setup
from sparsekit.training.step import MaskedStep


def train_replicas(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
    """Train replicas of one segment in lockstep; one that becomes non-finite is tried again alone, with another seed.

    Replicas that a checkpoint holds at different steps, or that are being tried again, are trained sequentially.
    """
    resumed = [at.snapshots[r.index] for r in replicas if r.index in at.snapshots]
    same_step = not resumed or (len(resumed) == len(replicas) and len({s.done for s in resumed}) == 1)
    if len(replicas) < 2 or not same_step or any(snapshot.attempt for snapshot in resumed):
        return sequential.train_replicas(context, stage, replicas, at)
    lockstep = Lockstep(context.setup, len(replicas))
    trainings = [
        Training(context.setup, at.parent, stage, replica, _schedule(context.setup, replica, stage), model=model)
        for replica, model in zip(replicas, lockstep.models, strict=True)
    ]
    if not resumed:
        torch.manual_seed(derive(context.setup.config.seed, "segment", stage.index, "vectorized"))
    for training in trainings:
        if snapshot := at.snapshots.get(training.replica.index):
            training.restore(snapshot)
    with context.signals.deferred():
        faults = _train(context, stage, lockstep, trainings, at)
    if lockstep.graphed:
        lockstep.graphed.release()
        sequential.explain_plain_steps(context, lockstep.graphed)
    for training in trainings:
        index = training.replica.index
        try:
            if index in faults:
                raise faults[index]
            trained = sequential.recalibrate_and_score(context.setup, training.result())
            at = sequential.finish_replica(context, stage, training.replica, trained, at)
        except NonFinite as fault:
            sequential.log_fault(context, stage, training, fault, at)
            again = Training(context.setup, at.parent, stage, training.replica, training.schedule, attempt=1)
            begun = again.snapshot()  # copied, as the working model goes on to others
            begun = replace(begun, tensors={name: t.cpu().clone() for name, t in begun.tensors.items()})
            at = replace(at, snapshots={**at.snapshots, index: begun})
    context.keep(at)  # one checkpoint for all: resuming only some of them in lockstep would not give the same bits
    context.signals.stop()
    return sequential.train_replicas(context, stage, [r for r in replicas if r.index not in at.finished], at)


def _train(
    context: RunContext, stage: Stage, lockstep: Lockstep, trainings: Sequence[Training], at: RunProgress
) -> dict[int, NonFinite]:
    """Train to the end of the segment.

    Returns:
        The fault of each replica that became non-finite, by replica index; the other replicas are not affected.
    """
    faults: dict[int, NonFinite] = {}

    def progress() -> RunProgress:
        return replace(at, snapshots={**at.snapshots, **{t.replica.index: t.snapshot() for t in trainings}})

    for batches in _together(context, trainings, progress):
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
            context.pause(progress)
    return faults


def _together(
    context: RunContext, trainings: Sequence[Training], progress: Callable[[], RunProgress]
) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
    """The replicas' batches side by side; commits a checkpoint where one cannot be read."""
    try:
        yield from zip(*(training.batches() for training in trainings), strict=True)
    except ReadError:
        context.keep(progress())
        context.signals.stop()  # the signal may have ended the worker
        raise


class Lockstep:
    """Copies of the working model whose tensors are rows of stacked tensors, and one training step for all of them.

    Args:
        setup: The run's setup; its working model is copied.
        count: Number of copies.

    Attributes:
        models: The copies, one per replica.
        graphed: Takes the steps where they can be recorded; None before the first one, and where they cannot.
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
        if setup.dtype != torch.float32:
            for layer in filter(_needs_float32, self.models[0].modules()):
                layer.forward = partial(_from_float32, layer.forward)
        self.forward = vmap(partial(_forward, self.models[0]), randomness="different")
        if setup.config.compile:
            self.forward = torch.compile(self.forward)
        self.graphed: GraphedStep | None = None

    def step(self, trainings: Sequence[Training], images: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Take one optimizer step with every replica, each on its own batch."""
        masked = [training.take_step for training in trainings]
        if self.graphed is None and all(graph.applies(each.setup, each.take_step, each.steps) for each in trainings):
            self.graphed = GraphedStep(*masked)
        step = partial(self._step, masked, [training.before() for training in trainings])
        losses = self.graphed(step, *images, *labels) if self.graphed else step(*images, *labels)
        for training, loss in zip(trainings, losses.unbind(), strict=True):
            training.after(loss)

    def _step(self, masked: Sequence[MaskedStep], progress: Sequence[float], *batches: Tensor) -> Tensor:
        """The device's part of a step on the replicas' images, then their labels; returns the losses [replicas]."""
        images, labels = batches[: len(masked)], batches[len(masked) :]
        steps = [one.at(now) for one, now in zip(masked, progress, strict=True)]
        effective = [one.effective(step) for one, step in zip(masked, steps, strict=True)]
        with self.setup.autocast():
            logits = self.forward({**self.weights, **_stack(effective)}, self.buffers, torch.stack(images))
        losses = [
            one.setup.loss(rows, targets, batch)
            for one, rows, targets, batch in zip(masked, logits.unbind(), labels, images, strict=True)
        ]
        for tensor in (*self.weights.values(), *(p for one in masked for p in one.parameters)):
            tensor.grad = None
        total = [one.objective(loss, step) for one, loss, step in zip(masked, losses, steps, strict=True)]
        torch.stack(total).sum().backward()  # type: ignore[no-untyped-call]
        for shared, parameters in self.rows:
            if shared.grad is not None:
                for gradient, parameter in zip(shared.grad.unbind(), parameters, strict=True):
                    # a penalty's gradient goes to the parameter directly, not through the stacked tensor
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for one, step in zip(masked, steps, strict=True):
            one.update(step)
        return torch.stack(losses).detach()


def obstacle(setup: Setup) -> str:
    """Why this setup's replicas cannot be trained in lockstep; empty if they can."""
    if setup.config.replicas.vary == "epochs":
        return "as they differ in length"
    if setup.device.type == "cpu" and setup.dtype != torch.float32:
        return "as autocast does not reach stacked replicas on a CPU, which would train in fp32"
    batches = {_batch(setup, replica) for segment in setup.plan for replica in segment.replicas}
    # each team stacks its own share
    most = max(-(-len(segment.replicas) // setup.team.count) for segment in setup.plan)
    if most < 2:
        return ""  # each is trained alone
    if len(batches) > 1:
        return f"as their batches differ in size ({min(batches)} and {max(batches)} images)"
    state = torch.get_rng_state()
    try:
        _try(setup, *((most, max(batches)) if setup.device.type == "cuda" else (2, 2)))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        if lacks_memory(error):
            return f"as {most} of them do not fit into the memory of {setup.device} together"
        return f"as the model does not go through torch.func.vmap: {first_line(error)}"
    finally:
        torch.set_rng_state(state)
    return ""


def _try(setup: Setup, count: int, batch: int) -> None:
    """Take one training step of `count` stacked replicas on copies of two examples."""
    segment = max(setup.plan, key=lambda each: len(each.replicas))
    parent, lockstep = first_progress(setup).parent, Lockstep(setup, count)
    trainings = [
        Training(setup, parent, segment.stage, replica, _schedule(setup, replica, segment.stage), model=model)
        for replica, model in zip(segment.replicas, lockstep.models, strict=False)
    ]
    inputs, targets = next(iter(setup.data.evaluation_batches("held_out")))
    copies = torch.arange(batch, device=inputs.device) % min(2, len(inputs))
    lockstep.step(trainings, [inputs[copies]] * count, [targets[copies]] * count)


def _schedule(setup: Setup, replica: Replica, stage: Stage) -> Schedule:
    return setup.for_replica(replica).method.learning_rate(stage)


def _batch(setup: Setup, replica: Replica) -> int:
    """The batch size of a replica: its subset may hold fewer images than `--data.batch_size`."""
    images = max(round(replica.subsample * setup.data.train_size), setup.data.num_classes)
    return min(setup.data.batch_size, images if replica.subsample < 1.0 else setup.data.train_size)


def _forward(model: nn.Module, weights: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
    return functional_call(model, (weights, buffers), (images,))  # type: ignore[no-any-return]


def _needs_float32(layer: nn.Module) -> bool:
    """Whether a layer of float32 tensors takes no half precision under vmap (torch #184890, on BatchNorm)."""
    biased = isinstance(layer, nn.modules.conv._ConvNd) and layer.bias is not None
    return biased or isinstance(layer, nn.modules.batchnorm._NormBase)


def _from_float32(forward: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A layer's result from its input in float32, which is what BatchNorm computes in without vmap, too."""
    return forward(values.float()).to(values.dtype)


def _stack(parts: Sequence[Tensors]) -> Tensors:
    """Tensors of the same names, stacked along a new first axis."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
