"""What a plan is made of. Plain data and arithmetic: no torch, no data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


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
