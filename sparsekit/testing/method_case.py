"""A pruning method under test: its instances, its prunings, training steps and a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
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
from sparsekit.testing.compare import clones, difference, frozen
from sparsekit.testing.problem import Run
from sparsekit.testing.rules import need
from sparsekit.training.setup import Setup


@dataclass(frozen=True)
class Pruning:
    """One pruning: its segment, the pruned state, and the name of a tensor that it changed in place, if any."""

    stage: Stage
    child: State
    touched: str


class MethodCase(PluginCase[PruningMethod]):
    """A pruning method under test, on a tiny model."""

    kind: Kind = "method"
    before_run: dict[str, Any]
    """The attributes of the run's instance before the run."""

    @cached_property
    def setup(self) -> Setup:
        """A prepared run of `gmp`, for its model."""
        return problem.prepare(problem.config(GMP(), Uniform()))

    @property
    def weight_count(self) -> int:
        """Number of prunable weights of the tiny model."""
        return sum(self.setup.model.get_parameter(name).numel() for name in self.setup.prunable)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Final sparsities to try; the last leaves one weight of all."""
        return 0.0, 0.5, 0.9, 0.99, 1.0 - 1.0 / self.weight_count

    def start(self, method: PruningMethod) -> State:
        """The first parent of a run."""
        return first_progress(replace(self.setup, config=replace(self.setup.config, method=method))).parent

    def prunings(
        self, sparsity: float, method: PruningMethod | None = None, weights: Tensors | None = None,
        gradients: Tensors | None = None,
    ) -> Iterator[Pruning]:  # fmt: skip
        """Every pruning of a plan of 30 epochs, by a new instance unless `method` is given.

        Small random changes stand in for the training in between. `weights` and `gradients`, if given, replace the
        first parent's weights and the gradients that a step can ask for; nothing changes between the prunings then.
        """
        method = method or self.make()
        given = budget(30.0, sparsity)
        plan = plan_of(method, given) or ()
        parent = self.start(method).with_weights(weights or {})
        for index in range(len(plan)):

            def slope(batches: int = 1, parent: State = parent, index: int = index) -> Tensors:
                generator = torch.Generator().manual_seed(1000 * index + batches)
                return gradients or {n: torch.randn(w.shape, generator=generator) for n, w in parent.weights.items()}

            before = clones(parent.named()), clones(parent.masks)
            child, stage = prune(method, parent, Stage(given, plan, index), MasksConfig(), 0, slope)
            yield Pruning(stage, child, difference(before[0], parent.named()) or difference(before[1], parent.masks))
            parent = child if weights or gradients else _moved(child, index, has_dense_weights(method))

    @cached_property
    def run(self) -> Run:
        """A whole run. Its error is raised once, for `ends_well`; then Skipped is raised."""
        method = self.make()
        self.try_once("the run", "ends_well")
        self.before_run = frozen(vars(method))
        return problem.run(method, Uniform())

    def training_steps(self, method: PruningMethod) -> Iterator[TrainingStep]:
        """Steps from the start of a run to its end, unpruned and half pruned; their tensors need gradients."""
        state = self.start(method)
        whole = masks.full(state.weights)
        half = {name: torch.arange(w.numel()).reshape(w.shape) % 2 for name, w in state.weights.items()}
        for progress, kept in ((0.0, whole), (0.01, half), (0.5, half), (1.0, half)):
            behind = whole if has_dense_weights(method) else kept
            yield TrainingStep(
                {name: (w * behind[name]).requires_grad_() for name, w in state.weights.items()},
                {name: mask.to(state.weights[name].dtype) for name, mask in kept.items()},
                {name: t.clone().requires_grad_() for name, t in state.extra.items()},
                progress,
                target=0.9,
                weight_decay=5e-4,
            )


def budget(epochs: float, sparsity: float, schedule: str = "cosine") -> Budget:
    """A budget with the default warm-up."""
    optimizer = OptimizerConfig(schedule=schedule)  # type: ignore[arg-type]
    return Budget(epochs, sparsity, optimizer.warmup, decay_shape(optimizer))


def plan_of(method: PruningMethod, given: Budget) -> tuple[Segment, ...] | None:
    """The plan, or None where the method refuses the budget with a message, as it may."""
    try:
        return tuple(method.plan(given))
    except ValueError as error:
        need(bool(str(error)), f"plan() refused {given} with an empty ValueError; say why")
        return None


def _moved(state: State, index: int, dense: bool) -> State:
    """The state after a small random change of its weights and extra tensors."""
    generator = torch.Generator().manual_seed(index)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.01 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)

    weights = {name: moved(w) * (1 if dense else state.masks[name]) for name, w in state.weights.items()}
    return replace(state.with_weights(weights), extra={name: moved(t) for name, t in state.extra.items()})
