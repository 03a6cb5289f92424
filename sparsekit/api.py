"""The contracts: what a plan is made of, pruning methods, merge strategies, and what a run hands to them.

A plugin subclasses `PruningMethod` or `CoefficientMerge` (or `MergeStrategy`) and names its class in an
entry point. It holds options only: the state of a run belongs to the run. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sparsekit._types import Generator, Tensor, Tensors

__all__ = [
    "Budget",
    "Candidate",
    "CoefficientMerge",
    "MergeStep",
    "MergeStrategy",
    "PruningMethod",
    "PruningStep",
    "Schedule",
    "Score",
    "Segment",
    "Soup",
    "Stage",
    "TrainingStep",
]

# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The learning rate over one segment, as a multiplier of `--optimizer.lr`.

    Attributes:
        multiplier: Maps the fraction of the segment that is done, 0 to 1, to the multiplier.
        restarts: True starts with a fresh optimizer; False carries the optimizer's state over from
            the segment before (averaged with the soup's coefficients).
    """

    multiplier: Callable[[float], float]
    restarts: bool = True

    def __call__(self, fraction: float) -> float:
        return self.multiplier(fraction)


@dataclass(frozen=True)
class Segment:
    """Prune the parent to `sparsity`, then train for `epochs`, up to the next pruning step or the end.

    Attributes:
        sparsity: Fraction of the prunable weights masked out, 0 to 1.
        epochs: Passes over the training data, 0 or more, fractions allowed. A segment of 0 epochs
            prunes only: nothing is forked or merged.
        average_from: A replica becomes the mean of its weights along the trajectory from this fraction of the segment
            on, 0 to below 1 (SWA, arXiv 1803.05407), after every optimizer step; None takes its last weights.
        replicas: Train at most so many replicas, whatever `--replicas.count` says.
    """

    sparsity: float
    epochs: float
    average_from: float | None = None
    replicas: int | None = None


@dataclass(frozen=True)
class Budget:
    """What a plan has to spend.

    Attributes:
        epochs: Total length of training in epochs (`--epochs`).
        sparsity: Final sparsity of the prunable weights, 0 to 1 (`--sparsity`).
        warmup: Fraction of the original schedule that is warm-up, 0 to 1.
        decay: The original schedule after its warm-up: done fraction, 0 to 1, to multiplier.
    """

    epochs: float
    sparsity: float
    warmup: float = 0.0
    decay: Callable[[float], float] = field(default=lambda fraction: 1.0, repr=False)

    def rate(self, fraction: float) -> float:
        """The original schedule with its linear warm-up, at a done fraction of 0 to 1."""
        if fraction < self.warmup:
            return fraction / self.warmup
        return self.decay(min((fraction - self.warmup) / (1.0 - self.warmup), 1.0))  # sums of epochs round


@dataclass(frozen=True)
class Stage:
    """One segment seen in its plan; all that a learning rate may depend on.

    Attributes:
        budget: What the plan spends.
        plan: Every segment of the run.
        index: Which of them this is, from 0.
        relative_change: ‖W − W_p‖₂ / ‖W‖₂ over the prunable weights, before and after this segment's
            pruning. While planning it is first 0, then infinity, to learn the schedule's bounds.
    """

    budget: Budget
    plan: tuple[Segment, ...]
    index: int
    relative_change: float = 0.0

    @property
    def segment(self) -> Segment:
        """The segment itself."""
        return self.plan[self.index]

    @property
    def start(self) -> float:
        """Epochs of the plan that lie before this segment."""
        return sum(segment.epochs for segment in self.plan[: self.index])

    @property
    def end(self) -> float:
        """Epochs of the plan up to the end of this segment."""
        return self.start + self.segment.epochs

    @property
    def previous_sparsity(self) -> float:
        """Sparsity of the segment before, 0 for the first."""
        return self.plan[self.index - 1].sparsity if self.index else 0.0

    @property
    def pruned_fraction(self) -> float:
        """Fraction of the remaining weights that this segment prunes, 0 to 1.

        The zeros that `--model.init` brings count as pruned by the first segment.
        """
        return 1.0 - (1.0 - self.segment.sparsity) / (1.0 - self.previous_sparsity)

    def continued(self) -> Schedule:
        """This segment's stretch of the one original schedule over the whole budget."""
        start, epochs, total = self.start, self.segment.epochs, self.budget.epochs
        return Schedule(lambda done: self.budget.rate((start + done * epochs) / total), restarts=False)


# --- pruning --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PruningStep(Stage):
    """What a pruning decision may need.

    Attributes:
        weights: The parent's prunable weights by parameter name, on the CPU, whatever the run's device: the
            same decision everywhere.
        masks: The masks so far, bool, True keeps, shaped as the weights.
        extra: The method's own tensors, as `PruningMethod.extra` named them.
        generator: A CPU generator seeded by (seed, segment).
        select: `select(scores, regrow=False)` keeps the highest scores, exactly as many as the segment's sparsity,
            `--masks.allocation` and `--masks.pattern` ask for, ties to the lower index. With `regrow=True` weights
            that are masked so far compete too. Raises RunError on a NaN score of a weight that may be kept, and with
            `lamp` on scores that are negative or infinite.
        gradients: `gradients(batches=1)` is the mean gradient of the training loss over that many training batches,
            with respect to the effective weights of the parent, also where they are masked; CPU tensors.
    """

    weights: Tensors
    masks: Tensors
    extra: Tensors
    generator: Generator
    select: Callable[..., Tensors]
    gradients: Callable[..., Tensors]


@dataclass(frozen=True)
class TrainingStep:
    """What one optimizer step knows; tensors may carry gradients.

    Attributes:
        weights: Prunable weights as the optimizer holds them.
        masks: 1 keeps and 0 prunes, shaped and typed as the weights.
        extra: The method's own tensors.
        progress: Done fraction of the whole budget, 0 to 1, at the middle of the step; of a model at rest, at the end
            of its segment.
        target: Final sparsity of the prunable weights, 0 to 1 (`--sparsity`).
        weight_decay: The replica's weight decay; 0 outside of training.
    """

    weights: Tensors
    masks: Tensors
    extra: Tensors
    progress: float
    target: float = 0.0
    weight_decay: float = 0.0


class PruningMethod(ABC):
    """When and what to prune. Subclasses take annotated options in `__init__` and must give `plan`.

    Every option is kept under its own name (`self.start`); nothing else is: the same instance may serve many runs.
    """

    allocation: ClassVar[Literal["global", "uniform", "erk", "lamp"]] = "global"
    """What `--masks.allocation` is where it is not given."""

    @abstractmethod
    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        """Split the budget into segments.

        The epochs sum up to `budget.epochs`, the last segment's sparsity is `budget.sparsity`.
        Raises ValueError, with a message for people, where the options leave no valid plan.
        """

    def scores(self, step: PruningStep) -> Tensors:
        """How much each prunable weight deserves to stay; by default its magnitude.

        A tensor for each of `step.weights`, of its shape, without NaN where the weight is still kept. Signs and
        infinities are allowed, but not with `--masks.allocation lamp`.
        """
        return {name: weight.abs() for name, weight in step.weights.items()}

    def masks(self, step: PruningStep) -> Tensors:
        """The segment's masks; by default the weights with the highest scores among those still kept.

        Bool, on the CPU, named and ordered as `step.weights`; exactly round(sparsity · N) of all N are False.
        """
        return step.select(self.scores(step))

    def learning_rate(self, stage: Stage) -> Schedule:
        """The segment's learning rate; by default one schedule goes on over the whole budget.

        It depends on `stage` alone: it is asked while planning too.
        """
        return stage.continued()

    def extra(self, weights: Tensors) -> Tensors:
        """Tensors of the method's own, trained, averaged and saved like parameters; by default none.

        Floating point, of any shape, on the CPU; asked for once a run. They get weight decay like weights.
        They come back in the order of their names, which may differ from that of `weights`.
        """
        return {}

    def effective(self, step: TrainingStep) -> Tensors:
        """The weights that the forward pass uses, differentiable, 0 where masked.

        Overriding it lets the weights behind the mask stay dense: the scheduler then masks nothing
        itself while training, and the finished model holds the effective weights. Called at every step, and without
        gradients before a model is scored or saved; it must depend on `step` alone.
        """
        return {name: weight * step.masks[name] for name, weight in step.weights.items()}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        """A differentiable 0-dim tensor added to the training loss, before loss scaling; by default none."""
        return None

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        """The gradients of the prunable weights that the optimizer gets, from those of the loss; by default the same.

        Called after the backward pass, before clipping; gradients of masked weights are 0 already.
        """
        return gradients


# --- merging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How a model does on a split: `accuracy` 0 to 1, `loss` mean cross-entropy in nats."""

    accuracy: float
    loss: float


class Candidate(ABC):
    """A finished replica, read from its file on demand.

    Attributes:
        index: The replica's number.
        score: Its held-out score, without label smoothing.
    """

    index: int
    score: Score

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of its tensors: parameters, buffers and the method's extra tensors."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""


@dataclass(frozen=True)
class Soup:
    """What a merge made.

    Attributes:
        tensors: The merged tensors, named as the candidates name theirs.
        coefficients: Weight of each candidate, in order, summing up to 1. The optimizer's state is
            averaged with them; None makes the next segment start with a fresh optimizer.
        ingredients: Indices of the replicas that were used, at least one.

    The run fails where names, shapes or types are not the candidates', or a value is not finite.
    """

    tensors: Tensors
    coefficients: tuple[float, ...] | None
    ingredients: tuple[int, ...]


@dataclass(frozen=True)
class MergeStep:
    """What a merge may use; it sees the held-out split, never the test split.

    Attributes:
        average: `average(candidates, coefficients)` streams a weighted mean, one tensor at a time,
            summed in float64 in the candidates' order; integer tensors come from the first
            candidate with a coefficient other than 0. Raises RunError unless there is a finite number for each
            candidate, and they sum up to 1.
        score: Held-out score of any tensors named as the candidates', BatchNorm treated as
            `--replicas.batchnorm` says.
        loss: Mean cross-entropy on up to 1,000 held-out images, of any tensors named as the candidates',
            differentiable, BatchNorm with the statistics given.
        fisher: `fisher(candidate, images=256)` is the diagonal of its empirical Fisher information over that many
            training images, a tensor of squared gradients a parameter; names without a gradient are absent.
        parent: The model that the replicas started from.
        generator: A CPU generator seeded by (seed, segment).
    """

    average: Callable[[Sequence[Candidate], Sequence[float]], Tensors]
    score: Callable[[Tensors], Score]
    loss: Callable[[Tensors], Tensor]
    fisher: Callable[..., Tensors]
    parent: Mapping[str, Tensor]
    generator: Generator


class MergeStrategy(ABC):
    """How the candidates of a segment become the next parent. Most merges want `CoefficientMerge`."""

    max_replicas: ClassVar[int | None] = None
    """Train no more replicas than this, whatever `--replicas.count` says."""

    @property
    def average_from(self) -> float | None:
        """Ask for candidates that are means of their trajectories, see `Segment.average_from`; by default not."""
        return None

    @abstractmethod
    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        """Combine at least one candidate, all sharing one mask, into one model of the same names and shapes.

        A single candidate comes back as it is.
        """


class CoefficientMerge(MergeStrategy):
    """A merge that only chooses how much of each candidate goes in."""

    @abstractmethod
    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        """One finite number a candidate, summing up to 1."""

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        """The average with these coefficients; raises RunError where they are not such."""
        weights = tuple(float(weight) for weight in self.coefficients(candidates, step))
        tensors = step.average(candidates, weights)  # first: it says what is wrong with the weights
        used = tuple(c.index for c, weight in zip(candidates, weights, strict=True) if weight)
        return Soup(tensors, weights, used)
