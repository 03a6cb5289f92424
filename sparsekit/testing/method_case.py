"""A pruning method under test: its instances, its prunings, training steps and a whole run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from unittest.mock import patch

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import Budget, PruningMethod, Segment, Stage, TrainingStep
from sparsekit.config.channel_pattern import NAME, ChannelPattern
from sparsekit.config.options import MasksConfig, OptimizerConfig
from sparsekit.errors import RunError
from sparsekit.evaluation import cost
from sparsekit.merges.uniform import Uniform
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State, has_dense_weights
from sparsekit.planning.plan import check_plan, decay_shape
from sparsekit.plugins.registry import Kind
from sparsekit.pruning import coupling, masks
from sparsekit.pruning.prune import prune
from sparsekit.run.progress import first_progress
from sparsekit.testing import problem
from sparsekit.testing.cases import PluginCase
from sparsekit.testing.compare import clones, difference, frozen, global_draws, not_finite
from sparsekit.testing.problem import Run
from sparsekit.testing.renamed import NAMES, renamed_setup, shorter
from sparsekit.testing.rules import need
from sparsekit.training import probes
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

    @cached_property
    def in_channels(self) -> Setup:
        """The same with the channels of its model, as `--masks.pattern channels` prunes them."""
        images, _ = next(iter(self.setup.data.evaluation_batches("held_out")))
        model, names = self.setup.model, list(self.setup.prunable)
        found = coupling.prepared(model, names, images[:1], ChannelPattern(), "weights", cost.flops)
        return replace(self.setup, channels=found)

    @property
    def weight_count(self) -> int:
        """Number of prunable weights of the tiny model."""
        return sum(self.setup.model.get_parameter(name).numel() for name in self.setup.prunable)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Final sparsities to try; the last leaves one weight of all."""
        return 0.0, 0.5, 0.9, 0.99, 1.0 - 1.0 / self.weight_count

    def defines(self, hook: str) -> bool:
        """Whether the class has a hook of its own."""
        return getattr(self.cls, hook) is not getattr(PruningMethod, hook)

    def start(self, method: PruningMethod, name: str = "") -> State:
        """The first parent of a run; of a network called `name` inside another."""
        return first_progress(self._setup(method, name)).parent

    def _setup(self, method: PruningMethod, name: str = "") -> Setup:
        setup = replace(self.setup, config=replace(self.setup.config, method=method))
        return renamed_setup(setup, name) if name else setup

    def prunings(
        self, sparsity: float, method: PruningMethod | None = None, weights: Tensors | None = None,
        gradients: Tensors | None = None, name: str = "", most: int | None = None, allocation: str | None = None,
        channels: bool = False,
    ) -> Iterator[Pruning]:  # fmt: skip
        """The prunings of a plan of 30 epochs, `most` of them at most, by a new instance unless `method` is given.

        Small random changes stand in for the training in between. `weights` and `gradients`, if given, replace the
        first parent's weights and the gradients that a step can ask for; nothing changes between the prunings then.
        The network is called `name` inside another, if that is given; `allocation` is `--masks.allocation`. With
        `channels` whole channels are pruned.
        """
        method = method or self.make()
        setup = self._setup(method, name)
        if channels:
            setup = replace(setup, channels=self.in_channels.channels)
        config = MasksConfig(allocation, pattern=NAME if channels else None)
        given = budget(30.0, sparsity)
        plan = plan_of(method, given) or ()
        parent = first_progress(setup).parent.with_weights(weights or {})
        beginnings: list[Tensors] = []
        for index in range(len(plan))[:most]:

            def slope(batches: int = 1, parent: State = parent, index: int = index) -> Tensors:
                if not isinstance(batches, int) or batches < 1:
                    raise RunError(f"step.gradients({batches!r}): give a whole number, 1 or more")
                generator = torch.Generator().manual_seed(1000 * index + batches)
                return gradients or {n: torch.randn(w.shape, generator=generator) for n, w in parent.weights.items()}

            before = clones(parent.named()), clones(parent.masks)
            beginnings.append(parent.tensors)
            rewind = plan[index].rewind
            probe = probes.probe(setup, parent, probes.notes("method", method, {}))
            child, stage = prune(
                method, parent, Stage(given, plan, index), config, 0, slope, probe,
                None if rewind is None else beginnings[rewind], setup.channels,
            )  # fmt: skip
            yield Pruning(stage, child, difference(before[0], parent.named()) or difference(before[1], parent.masks))
            parent = child if weights or gradients else _moved(child, index, has_dense_weights(method))

    @cached_property
    def run(self) -> Run:
        """A whole run. Its error is raised once, for `ends_well`; then Skipped is raised."""
        method = self.make()
        self.try_once("the run", "ends_well")
        self.before_run = frozen(vars(method))
        return problem.run(method, Uniform())

    def watched(self, seen: list[tuple[str, str]]) -> PruningMethod:
        """An instance that notes which of its hooks in pruning draws from which global generator."""

        def noting(hook: str) -> Any:
            original = getattr(self.cls, hook)

            def watching(method: Any, *given: Any) -> Any:
                with global_draws() as drawn:
                    found = original(method, *given)
                seen.extend((hook, which) for which in drawn)
                return found

            return watching

        hooks = {hook: noting(hook) for hook in ("extra", "scores", "masks") if self.defines(hook)}
        made: PruningMethod = type(self.cls.__name__, (self.cls,), hooks)(**self.options)
        return made

    @contextmanager
    def _scored(self) -> Iterator[list[Tensors]]:
        """The scores that the class's own scores() gives within it."""
        found: list[Tensors] = []
        original = self.cls.scores

        def noting(method: Any, step: Any) -> Any:
            scores = original(method, step)
            found.append(clones(scores))
            return scores

        if not self.defines("scores"):
            yield found
            return
        with patch.object(self.cls, "scores", noting):
            yield found

    def training_steps(self, method: PruningMethod, name: str = "") -> Iterator[TrainingStep]:
        """Steps from the start of a run to its end, unpruned and half pruned; what is trained needs gradients.

        The network is called `name` inside another, if that is given.
        """
        state = self.start(method, name)
        whole = masks.full(state.weights)
        half = {name: torch.arange(w.numel()).reshape(w.shape) % 2 for name, w in state.weights.items()}
        for progress, kept in ((0.0, whole), (0.01, half), (0.5, half), (1.0, half)):
            behind = whole if has_dense_weights(method) else kept
            yield TrainingStep(
                {name: (w * behind[name]).requires_grad_() for name, w in state.weights.items()},
                {name: mask.to(state.weights[name].dtype) for name, mask in kept.items()},
                {name: t.clone().requires_grad_(method.extra_trained(name)) for name, t in state.extra.items()},
                progress,
                target=0.9,
                weight_decay=5e-4,
                generator=torch.Generator().manual_seed(0),
                replica=0,
            )

    def hooks(self, method: PruningMethod, step: TrainingStep) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The hooks in training that the class defines, and a call of each as a step makes it."""
        generator = torch.Generator().manual_seed(0)
        noise = {name: torch.randn(w.shape, generator=generator) for name, w in step.weights.items()}
        noise = {name: noise[name].to(w.device) for name, w in step.weights.items()}
        kept = noise if has_dense_weights(method) else {name: g * step.masks[name] for name, g in noise.items()}
        for hook, given in (("effective", None), ("penalty", None), ("gradients", kept), ("update", noise)):
            if self.defines(hook):
                yield hook, partial(_called, getattr(method, hook), step, given)

    def probe(self, instance: PruningMethod) -> None:
        for epochs in (6.0, 30.0):
            given = budget(epochs, 0.9)
            if (plan := plan_of(instance, given)) is None:
                return
            check_plan("plan()", plan, given)
            for index in {0, len(plan) // 2, len(plan) - 1}:
                rate = instance.learning_rate(Stage(given, plan, index, 0.5))(0.5)
                need(math.isfinite(rate) and rate >= 0.0, f"learning_rate() gives {rate!r}")
        list(self.prunings(0.9, instance, most=3))
        for step in self.training_steps(instance):
            for hook, call in self.hooks(instance, step):
                name = not_finite(named(call()))
                need(not name, f"{hook}() at progress {step.progress:g} is not finite")

    def digest(self) -> str:
        """A digest of all that the class chooses, under each name of the network: in one of them sums show an order."""
        method, found = self.make(), hashlib.sha256()
        for network in NAMES:
            for what, tensors in self.choices(method, network):
                for name in sorted(tensors):
                    found.update(f"{what} {name}".encode() + tensors[name].detach().numpy().tobytes())
        return found.hexdigest()

    def choices(self, method: PruningMethod, name: str = "") -> Iterator[tuple[str, Tensors]]:
        """All that a method chooses, by what chooses it; in a network called `name` inside another, if that is given.

        The tensors have the names of the network itself.
        """
        yield "extra()", shorter(self.start(method, name).extra, name)
        with self._scored() as scored:
            for pruning in self.prunings(0.9, method, name=name):
                yield "masks()" if self.defines("masks") else "scores()", shorter(pruning.child.masks, name)
        for tensors in scored:  # a mask hides the last bits
            yield "scores()", shorter(tensors, name)
        for step in self.training_steps(method, name):
            for hook, call in self.hooks(method, step):
                yield f"{hook}()", shorter(named(call()), name)


def named(found: Any) -> Tensors:
    """What a hook gave, as tensors by name."""
    if found is None:
        return {}
    return {"it": found} if isinstance(found, torch.Tensor) else dict(found)


def _called(hook: Callable[..., Any], step: TrainingStep, gradients: Tensors | None) -> Any:
    if gradients is None:
        return hook(step)
    with torch.no_grad():
        return hook(step, {name: tensor.clone() for name, tensor in gradients.items()})


def check_alike(where: str, got: Tensors, weights: Tensors) -> None:
    """Raise Broken unless tensors are finite and have the shapes and types of the weights of the same names."""
    for name, tensor in got.items():
        alike = tensor.shape == weights[name].shape and tensor.dtype == weights[name].dtype
        need(alike, f"{where}: {name} is {tensor.dtype} {tuple(tensor.shape)}; keep the weight's type and shape")
    name = not_finite(got)
    need(not name, f"{where}: {name} is not finite")


def check_gradients(where: str, value: Tensor, step: TrainingStep) -> bool:
    """Whether a scalar has a gradient other than 0; raises Broken unless it is finite."""
    own = {f"extra {name}": tensor for name, tensor in step.extra.items()}
    leaves = {name: t for name, t in {**step.weights, **own}.items() if t.requires_grad}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    name = not_finite(gradients)
    need(not name, f"{where}: the gradient of {name} is not finite")
    return any(bool(gradient.any()) for gradient in gradients.values())


def budget(epochs: float, sparsity: float, schedule: str = "cosine") -> Budget:
    """A budget with the default warm-up."""
    optimizer = OptimizerConfig(schedule=schedule)
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
