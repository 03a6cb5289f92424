"""A pruning method under test: its instances, states to prune, training steps and a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from sparsekit._types import Tensors
from sparsekit.api import Budget, PruningMethod, Segment, Stage, TrainingStep
from sparsekit.config.options import MasksConfig, OptimizerConfig
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State, has_dense_weights
from sparsekit.planning.plan import decay_shape
from sparsekit.plugins.registry import Kind
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.testing import problem
from sparsekit.testing.cases import PluginCase
from sparsekit.testing.problem import Run, clones, difference, frozen
from sparsekit.testing.rules import Unreached, need
from sparsekit.training.prepare import prepare
from sparsekit.training.setup import Setup

SPARSITIES = (0.0, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Pruning:
    """One pruning: its segment, what came of it, and the name of a tensor of the parent that it changed, if any."""

    stage: Stage
    child: State
    touched: str


class MethodCase(PluginCase[PruningMethod]):
    """A pruning method under test, on a tiny model."""

    kind: Kind = "method"
    before_run: dict[str, Any]
    """The options of the run's instance, before the run."""

    @cached_property
    def setup(self) -> Setup:
        """A run's surroundings, prepared with a method that is known to be sound."""
        return prepare(problem.config(GMP(), Uniform()))

    @property
    def weight_count(self) -> int:
        """Prunable weights of the tiny model."""
        return sum(self.setup.model.get_parameter(name).numel() for name in self.setup.prunable)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Final sparsities to try; the last leaves one weight of all."""
        return (*SPARSITIES, 1.0 - 1.0 / self.weight_count)

    def start(self, method: PruningMethod) -> State:
        """The first parent of a run."""
        return first_progress(replace(self.setup, config=replace(self.setup.config, method=method))).parent

    def prunings(self, method: PruningMethod, sparsity: float, **doctored: Tensors) -> Iterator[Pruning]:
        """Every pruning of a plan of 30 epochs; small random changes stand in for the training in between.

        `weights` and `gradients` replace the first parent's and those that a step can ask for; nothing else changes
        between the prunings then.
        """
        given = budget(30.0, sparsity)
        plan = plan_of(method, given) or ()
        parent = self.start(method)
        parent = parent.with_weights(doctored.get("weights", parent.weights))
        for index in range(len(plan)):
            gradients = partial(_gradients, doctored.get("gradients"), parent.weights, index)
            before = clones(parent.named()), clones(parent.masks)
            child, stage = prune(method, parent, Stage(given, plan, index), MasksConfig(), 0, gradients)
            touched = difference(before[0], parent.named()) or difference(before[1], parent.masks)
            yield Pruning(stage, child, touched)
            parent = child if doctored else _moved(child, index, has_dense_weights(method))

    @cached_property
    def _run(self) -> Run | Exception:
        method = self.make()
        self.before_run = frozen(vars(method))
        try:
            return problem.run(method, Uniform())
        except Exception as error:
            return error

    @property
    def run(self) -> Run:
        """A whole run; Unreached where it fails, which is `ends_well`'s to tell."""
        if isinstance(self._run, Exception):
            raise Unreached("the run failed, see ends_well")
        return self._run

    @property
    def run_error(self) -> Exception | None:
        """What ended the run, if it failed."""
        return self._run if isinstance(self._run, Exception) else None

    def training_steps(self, method: PruningMethod) -> Iterator[TrainingStep]:
        """Training steps from the beginning to the end, dense and pruned, with tensors that take gradients."""
        state = self.start(method)
        half = {name: torch.arange(w.numel()).reshape(w.shape) % 2 for name, w in state.weights.items()}
        for progress, kept in ((0.0, masks.full(state.weights)), (0.01, half), (0.5, half), (1.0, half)):
            behind = masks.full(state.weights) if has_dense_weights(method) else kept
            yield TrainingStep(
                {name: (w * behind[name]).requires_grad_() for name, w in state.weights.items()},
                {name: mask.to(state.weights[name].dtype) for name, mask in kept.items()},
                {name: t.clone().requires_grad_() for name, t in state.extra.items()},
                progress,
                target=0.9,
                weight_decay=5e-4,
            )


def budget(epochs: float, sparsity: float, schedule: str = "cosine") -> Budget:
    """A budget with a usual schedule."""
    optimizer = OptimizerConfig(schedule=schedule)  # type: ignore[arg-type]
    return Budget(epochs, sparsity, optimizer.warmup, decay_shape(optimizer))


def plan_of(method: PruningMethod, given: Budget) -> tuple[Segment, ...] | None:
    """The plan; None where the method refuses the budget with a message, as it may."""
    try:
        return tuple(method.plan(given))
    except ValueError as error:
        need(bool(str(error)), f"plan() refused {given} with an empty ValueError; say why")
        return None


def _gradients(doctored: Tensors | None, weights: Tensors, index: int, batches: int = 1) -> Tensors:
    """Random gradients that depend on the segment and the number of batches alone."""
    generator = torch.Generator().manual_seed(1000 * index + batches)
    return doctored or {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}


def _moved(state: State, index: int, dense: bool) -> State:
    """The state after a stretch of pretended training."""
    generator = torch.Generator().manual_seed(index)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.01 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)

    weights = {name: moved(w) * (1 if dense else state.masks[name]) for name, w in state.weights.items()}
    extra = {name: moved(t) for name, t in state.extra.items()}
    return replace(state.with_weights(weights), extra=extra)
