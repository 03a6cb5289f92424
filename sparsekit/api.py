"""The two contracts, pruning methods and merge strategies, and what the scheduler hands to them.

A plugin subclasses `PruningMethod` or `CoefficientMerge` (or `MergeStrategy`) and names its class in an
entry point. It holds options only: the state of a run belongs to the run. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sparsekit._types import Generator, Tensor, Tensors

# --- the plan -------------------------------------------------------------------------------------


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
    """

    sparsity: float
    epochs: float


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
        return self.decay((fraction - self.warmup) / (1.0 - self.warmup))


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
    def previous_sparsity(self) -> float:
        """Sparsity of the segment before, 0 for the first."""
        return self.plan[self.index - 1].sparsity if self.index else 0.0

    @property
    def pruned_fraction(self) -> float:
        """Fraction of the remaining weights that this segment prunes, 0 to 1."""
        return 1.0 - (1.0 - self.segment.sparsity) / (1.0 - self.previous_sparsity)

    def continued(self) -> Schedule:
        """This segment's stretch of the one original schedule over the whole budget."""
        start, epochs, total = self.start, self.segment.epochs, self.budget.epochs
        return Schedule(lambda done: self.budget.rate((start + done * epochs) / total), restarts=False)


# --- pruning --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PruningStep(Stage):
    """What a pruning decision may need.

    Attributes:
        weights: The parent's prunable weights by parameter name, on the CPU, whatever the run's device: the
            same decision everywhere.
        masks: The masks so far, bool, True keeps, shaped as the weights.
        extra: The method's own tensors, as `PruningMethod.extra` named them.
        generator: A CPU generator seeded by (seed, segment).
        select: `select(scores, regrow=False)` keeps the highest scores, exactly as many as the
            segment's sparsity and `--masks.allocation` ask for, ties to the lower index. With
            `regrow=True` weights that are masked so far compete too. Raises RunError on NaN scores.
    """

    weights: Tensors = field(default_factory=dict)
    masks: Tensors = field(default_factory=dict)
    extra: Tensors = field(default_factory=dict)
    generator: Generator | None = None
    select: Callable[..., Tensors] = field(default=lambda scores, regrow=False: scores, repr=False)


@dataclass(frozen=True)
class TrainingStep:
    """What one optimizer step knows; tensors may carry gradients.

    Attributes:
        weights: Prunable weights as the optimizer holds them.
        masks: 1 keeps and 0 prunes, shaped and typed as the weights.
        extra: The method's own tensors.
        progress: Done fraction of the whole budget, 0 to 1.
    """

    weights: Tensors
    masks: Tensors
    extra: Tensors
    progress: float


class PruningMethod(ABC):
    """When and what to prune. Subclasses take annotated options in `__init__` and must give `plan`."""

    @abstractmethod
    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        """Split the budget into segments.

        The epochs sum up to `budget.epochs`, the last segment's sparsity is `budget.sparsity`.
        Raises ValueError, with a message for people, where the options leave no valid plan.
        """

    def scores(self, step: PruningStep) -> Tensors:
        """How much each prunable weight deserves to stay; by default its magnitude."""
        return {name: weight.abs() for name, weight in step.weights.items()}

    def masks(self, step: PruningStep) -> Tensors:
        """The segment's masks; by default the weights with the highest scores among those still kept."""
        return step.select(self.scores(step))

    def learning_rate(self, stage: Stage) -> Schedule:
        """The segment's learning rate; by default one schedule goes on over the whole budget."""
        return stage.continued()

    def extra(self, weights: Tensors) -> Tensors:
        """Tensors of the method's own, trained, averaged and saved like parameters; by default none."""
        return {}

    def effective(self, step: TrainingStep) -> Tensors:
        """The weights that the forward pass uses, differentiable, 0 where masked.

        Overriding it lets the weights behind the mask stay dense: the scheduler then masks nothing
        itself while training, and the finished model holds the effective weights.
        """
        return {name: weight * step.masks[name] for name, weight in step.weights.items()}


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
        ingredients: Indices of the replicas that were used.
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
            candidate with a coefficient above 0.
        score: Held-out score of any tensors named as the candidates', BatchNorm treated as
            `--replicas.batchnorm` says.
        parent: The model that the replicas started from.
        generator: A CPU generator seeded by (seed, segment).
    """

    average: Callable[[Sequence[Candidate], Sequence[float]], Tensors]
    score: Callable[[Tensors], Score]
    parent: Tensors
    generator: Generator


class MergeStrategy(ABC):
    """How the candidates of a segment become the next parent. Most merges want `CoefficientMerge`."""

    max_replicas: ClassVar[int | None] = None
    """Train no more replicas than this, whatever `--replicas.count` says."""

    @abstractmethod
    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        """Combine at least one candidate, all sharing one mask, into one model of the same names and shapes."""


class CoefficientMerge(MergeStrategy):
    """A merge that only chooses how much of each candidate goes in."""

    @abstractmethod
    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        """One finite number a candidate, summing up to 1."""

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        weights = tuple(self.coefficients(candidates, step))
        used = tuple(c.index for c, weight in zip(candidates, weights, strict=True) if weight)
        return Soup(step.average(candidates, weights), weights, used)
