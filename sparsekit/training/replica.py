"""The training loop: one replica through one segment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sparsekit.api import Schedule, Stage
from sparsekit.models.reparametrized import all_finite
from sparsekit.models.state import State, cpu_state_dict, from_file, to_file
from sparsekit.models.stored import Lazy
from sparsekit.planning.replicas import Replica
from sparsekit.seeds import derive
from sparsekit.training import graph, optimizers
from sparsekit.training.graph import GraphedStep
from sparsekit.training.setup import Setup
from sparsekit.training.step import MaskedStep, TrajectoryMean

LOG_STEPS = 50


class NonFinite(Exception):
    """A replica's loss or weights are no longer finite."""


@dataclass(frozen=True)
class Progress:
    """A training report of a replica.

    Attributes:
        done: Optimizer steps taken in the segment.
        steps: Optimizer steps of the segment in total.
        loss: Mean training loss since the last report.
        lr: Learning rate of the last step.
    """

    done: int
    steps: int
    loss: float
    lr: float


@dataclass(frozen=True)
class ReplicaSnapshot:
    """A replica in the middle of its training, for a checkpoint.

    Attributes:
        done: Optimizer steps taken in the segment.
        attempt: How often it was started again after becoming non-finite.
        averaged: Number of steps in its trajectory mean.
        tensors: Its tensors and random states, under their names in a file; read from there, or from the replica
            itself, as it is then.
    """

    done: int
    attempt: int
    averaged: int
    tensors: Mapping[str, Tensor]


class Training:
    """One replica in training: a copy of the parent with a fixed mask, trained step by step.

    All randomness follows from (seed, segment, replica, attempt).

    Args:
        setup: The run's setup.
        parent: The pruned model that the replica starts from.
        stage: The segment.
        replica: The replica's seed and hyperparameters.
        schedule: The segment's learning rate.
        attempt: How often the replica was started again after becoming non-finite.
        model: The model to train, of the parent's architecture; by default the setup's working model.
    """

    def __init__(
        self,
        setup: Setup,
        parent: State,
        stage: Stage,
        replica: Replica,
        schedule: Schedule,
        attempt: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        self.setup = setup = setup.for_replica(replica)
        self.parent, self.stage, self.replica = parent, stage, replica
        self.schedule, self.attempt, self.done = schedule, attempt, 0
        alone = model is None or model is setup.model
        self.model = model = model or setup.team.model(setup.model)
        config = setup.config
        again = ("attempt", attempt) if attempt else ()
        self.seed = derive(config.seed, "segment", stage.index, "replica", replica.seed, *again)
        self.steps = replica.steps(setup.plan[stage.index].steps)
        self.every = min(LOG_STEPS, setup.data.steps_per_epoch)
        self.lr = 0.0
        self.subset = setup.data.subset(replica.subsample, self.seed) if replica.subsample < 1.0 else None
        model.load_state_dict(parent.tensors)
        method = setup.method
        self.extra = {
            name: t.to(setup.device, copy=True).requires_grad_(method.extra_trained(name))
            for name, t in parent.extra.items()
        }
        trained = {name: t for name, t in self.extra.items() if t.requires_grad}
        undecayed = [name for name in trained if not method.extra_decays(name)]
        self.optimizer = optimizers.build(config.optimizer, model, trained, replica.lr, replica.weight_decay, undecayed)
        self.names = optimizers.names_of(self.optimizer, model, self.extra)
        if parent.optimizer and not self.schedule.restarts:
            optimizers.restore(self.optimizer, self.names, parent.optimizer)
        self.take_step = MaskedStep(setup, model, parent, self.extra, self.optimizer, replica.weight_decay)
        if self.take_step.hooked:
            self.take_step.generator, self.take_step.replica = torch.Generator(setup.device), replica.index
        recorded = alone and graph.applies(setup, self.take_step, self.steps)
        self.graphed = GraphedStep(self.take_step) if recorded else None
        self.average_from = averaged_from(setup, stage)
        averages, decay = self.average_from is not None, average_decay(setup, stage)
        self.mean = TrajectoryMean([*model.parameters(), *self.extra.values()], decay) if averages else None
        self.loss = torch.zeros((), device=setup.device)
        torch.manual_seed(self.seed)  # dropout and stochastic depth
        model.train()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch."""
        # each member needs its own random numbers, but a snapshot holds the first member's random state only
        if self.setup.team.size > 1:
            torch.manual_seed(derive(self.seed, "member", self.setup.team.member, self.done))
        step = partial(self.take_step, progress=self.before())
        self.after(self.graphed(step, images, labels) if self.graphed else step(images, labels))

    def before(self) -> float:
        """Set the next step's learning rate and seed, and return the fraction of the budget at its middle."""
        if self.take_step.generator is not None:
            self.take_step.generator.manual_seed(derive(self.seed, "step", self.done))
        middle, stage = (self.done + 0.5) / self.steps, self.stage
        self.lr = self.replica.lr * self.schedule(middle)
        for group in self.optimizer.param_groups:
            lr = self.lr * group.get("lr_scale", 1.0)
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
        return (stage.start + middle * stage.segment.epochs) / stage.budget.epochs

    def after(self, loss: Tensor) -> None:
        """Record a step that was taken and its loss."""
        middle = (self.done + 0.5) / self.steps
        self.loss += loss
        if self.mean is not None and self.average_from is not None and middle >= self.average_from:
            self.mean.update()
        self.done += 1

    def report(self) -> Progress:
        """Report the mean loss since the last report.

        Raises:
            NonFinite: the mean loss is not finite.
        """
        since = (self.done - 1) % self.every + 1
        self.setup.team.broadcast(self.loss)  # every member must take the same decision
        loss = float(self.loss) / since
        self.loss.zero_()
        if not math.isfinite(loss):
            raise NonFinite(f"its loss is {loss} at step {self.done} of {self.steps}")
        return Progress(self.done, self.steps, loss, self.lr)

    @property
    def due(self) -> bool:
        """Whether a report is due."""
        return self.done % self.every == 0 or self.done == self.steps

    def result(self) -> State:
        """The trained state; its optimizer's state is read from the optimizer.

        Raises:
            NonFinite: a weight is not finite.
        """
        if self.graphed:
            self.graphed.release()
        if self.mean is not None:
            self.mean.install()
        self.optimizer.zero_grad(set_to_none=True)
        state = replace(
            self.parent,
            tensors=cpu_state_dict(self.model),
            extra={name: t.detach().to("cpu", copy=True) for name, t in self.extra.items()},
            optimizer=optimizers.exported(self.optimizer, self.names),
            progress=self.stage.end / self.stage.budget.epochs,
        )
        for name, tensor in state.named().items():
            if not all_finite(tensor):
                raise NonFinite(f"{name} is not finite after {self.steps} steps")
        return state

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The remaining training batches: images [B, C, S, S] and labels [B]."""
        part = (self.setup.team.member, self.setup.team.size)
        return self.setup.data.train_batches(self.seed, self.steps, start=self.done, subset=self.subset, part=part)

    def snapshot(self) -> ReplicaSnapshot:
        """A snapshot from which `restore` continues with the same bits.

        Its tensors are read from the replica when they are written, one at a time: before the next step.
        """
        state = replace(
            self.parent,
            tensors={name: t.detach() for name, t in self.model.state_dict().items()},
            extra={name: t.detach() for name, t in self.extra.items()},
            optimizer=optimizers.exported(self.optimizer, self.names),
        )
        small = {"loss": self.loss.to("cpu", copy=True), "random.cpu": torch.get_rng_state()}
        if self.setup.device.type == "cuda":
            small["random.cuda"] = torch.cuda.get_rng_state(self.setup.device)
        if self.mean is not None:
            small |= {f"mean.{i}": t.detach() for i, t in enumerate(self.mean.means)}
        if self.take_step.scaler.is_enabled():
            small |= {f"scaler.{key}": torch.tensor(v) for key, v in self.take_step.scaler.state_dict().items()}
        every = to_file(state)
        tensors = Lazy.of([*every, *small], lambda name: small[name] if name in small else every[name])
        return ReplicaSnapshot(self.done, self.attempt, self.mean.count if self.mean else 0, tensors)

    def restore(self, snapshot: ReplicaSnapshot) -> None:
        """Continue from a snapshot of the same replica."""
        tensors = snapshot.tensors
        state = from_file(tensors, 0.0, 0.0)
        self.model.load_state_dict(state.tensors)
        with torch.no_grad():
            for name, tensor in self.extra.items():
                tensor.copy_(state.extra[name])
            for i, mean in enumerate(self.mean.means if self.mean else ()):
                mean.copy_(tensors[f"mean.{i}"])
        if self.mean is not None:
            self.mean.count = snapshot.averaged
        optimizers.restore(self.optimizer, self.names, state.optimizer)
        scaler = {name.removeprefix("scaler."): tensors[name].item() for name in tensors if name.startswith("scaler.")}
        if scaler:
            self.take_step.scaler.load_state_dict(scaler)
        self.loss.copy_(tensors["loss"])
        self.done = snapshot.done
        torch.set_rng_state(tensors["random.cpu"])
        if self.setup.device.type == "cuda" and "random.cuda" in tensors:  # absent if the run was started on a CPU
            torch.cuda.set_rng_state(tensors["random.cuda"], self.setup.device)


def train(
    training: Training, report: Callable[[Progress], None], pause: Callable[[Training], None] | None = None
) -> State:
    """Train to the end of the segment.

    Args:
        training: The replica in training.
        report: Called with each report.
        pause: Called between two steps; may take a snapshot.

    Raises:
        NonFinite: the loss or a weight is no longer finite.
    """
    for images, labels in training.batches():
        training.step(images, labels)
        if training.due:
            report(training.report())
        if pause is not None and training.done < training.steps:
            pause(training)
    return training.result()


def averaged_from(setup: Setup, stage: Stage) -> float | None:
    """The fraction of the segment from which weights are averaged: the plan's value, else the merge strategy's."""
    planned = stage.segment.average_from
    return planned if planned is not None else setup.config.merge.average_from


def average_decay(setup: Setup, stage: Stage) -> float:
    """The factor by which each step fades those before it in that average: the plan's means are plain."""
    return 1.0 if stage.segment.average_from is not None else setup.config.merge.average_decay
