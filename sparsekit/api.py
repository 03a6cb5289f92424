"""The contracts of plugins: plans, pruning methods, merge strategies and tasks, and what a run passes to them.

A plugin subclasses `PruningMethod`, `CoefficientMerge` (or `MergeStrategy`) or `Task` and names its class in an entry
point. Its instances hold options only, as the state of a run belongs to the run. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sparsekit._types import Generator, Tensor, Tensors
from sparsekit.errors import RunError

__all__ = [
    "Budget",
    "Candidate",
    "CoefficientMerge",
    "MergeStep",
    "MergeStrategy",
    "Meter",
    "Probe",
    "PruningMethod",
    "PruningStep",
    "Schedule",
    "Score",
    "Segment",
    "Soup",
    "Stage",
    "Task",
    "TrainingStep",
]

# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The learning rate over one segment, as a multiplier of `--optimizer.lr`.

    Attributes:
        multiplier: Maps the fraction of the segment that is done, 0 to 1, to the multiplier.
        restarts: True starts with a new optimizer; False keeps the optimizer's state of the previous segment
            (averaged with the soup's coefficients).
        d: ALLR's factor of the largest rate, where the pruning decided it; plans and rows tell it.
    """

    multiplier: Callable[[float], float]
    restarts: bool = True
    d: float | None = None

    def __call__(self, fraction: float) -> float:
        return self.multiplier(fraction)


@dataclass(frozen=True)
class Segment:
    """Prune the parent to `sparsity`, then train for `epochs`, up to the next pruning step or the end.

    Attributes:
        sparsity: Fraction of the prunable weights masked out, 0 to 1.
        epochs: Passes over the training data, 0 or more, fractions allowed. A segment of 0 epochs only prunes:
            nothing is forked or merged.
        average_from: From this fraction of the segment on, 0 to below 1, a replica's weights are averaged after every
            optimizer step, and the mean becomes the candidate (SWA, arXiv 1803.05407); None takes the last weights.
        replicas: Train at most this many replicas, even if `--replicas.count` is higher.
        rewind: Once this segment's masks are chosen, all parameters and buffers return to what they were when the
            segment of this index, an earlier one, began, before its own pruning; the optimizer starts anew (weight
            rewinding, arXiv 1912.05671). The method's own tensors stay as they are.
    """

    sparsity: float
    epochs: float
    average_from: float | None = None
    replicas: int | None = None
    rewind: int | None = None


@dataclass(frozen=True)
class Budget:
    """The training budget that a plan divides into segments.

    Attributes:
        epochs: Total length of training in epochs (`--epochs`).
        sparsity: Final sparsity of the prunable weights, 0 to 1 (`--sparsity`).
        warmup: Fraction of the original schedule that is warm-up, 0 to 1.
        decay: The original schedule after its warm-up; maps the done fraction, 0 to 1, to the multiplier.
    """

    epochs: float
    sparsity: float
    warmup: float = 0.0
    decay: Callable[[float], float] = field(default=lambda fraction: 1.0, repr=False)

    def rate(self, fraction: float) -> float:
        """The original schedule with its linear warm-up, at a done fraction of 0 to 1."""
        if fraction < self.warmup:
            return fraction / self.warmup
        return self.decay(min((fraction - self.warmup) / (1.0 - self.warmup), 1.0))  # above 1 by rounding


@dataclass(frozen=True)
class Stage:
    """One segment in the context of its plan; a learning rate may depend on nothing else.

    Attributes:
        budget: The budget of the plan.
        plan: All segments of the run.
        index: Index of this segment in the plan.
        relative_change: ‖W − W_p‖₂ / ‖W‖₂ over all parameters W before and W_p after this segment's pruning.
            Planning calls `learning_rate` with 0 and with infinity to find the bounds of the schedule.
    """

    budget: Budget
    plan: tuple[Segment, ...]
    index: int
    relative_change: float = 0.0

    @property
    def segment(self) -> Segment:
        """This segment."""
        return self.plan[self.index]

    @property
    def start(self) -> float:
        """Epochs of the plan before this segment."""
        return sum(segment.epochs for segment in self.plan[: self.index])

    @property
    def end(self) -> float:
        """Epochs of the plan up to the end of this segment."""
        return self.start + self.segment.epochs

    @property
    def last(self) -> bool:
        """Whether no later segment trains, so that this one's merge is the run's last."""
        return not any(segment.epochs > 0 for segment in self.plan[self.index + 1 :])

    @property
    def previous_sparsity(self) -> float:
        """Sparsity of the previous segment, 0 for the first."""
        return self.plan[self.index - 1].sparsity if self.index else 0.0

    @property
    def pruned_fraction(self) -> float:
        """Fraction of the remaining weights that this segment prunes, 0 to 1.

        Zeros of the model of `--model.init` count as pruned by the first segment.
        """
        return 1.0 - (1.0 - self.segment.sparsity) / (1.0 - self.previous_sparsity)

    def continued(self) -> Schedule:
        """This segment's part of the original schedule over the whole budget; keeps the optimizer's state."""
        start, epochs, total = self.start, self.segment.epochs, self.budget.epochs
        return Schedule(lambda done: self.budget.rate((start + done * epochs) / total), restarts=False)


# --- looking into the network ---------------------------------------------------------------------


def _absent(*args: Any, **kwargs: Any) -> Any:
    raise RunError("there is no network, no data and no log here; look at them in a run")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What pruning methods and merges can find out about the network, and tell about it.

    Attributes:
        buffers: Names of the model's buffers, such as the running statistics of BatchNorm; all its other tensors are
            parameters.
        model: `model(tensors=None)` is a new copy of the network (`torch.nn.Module`) on the run's device, in evaluation
            mode, with the effective weights of the parent; `tensors` replace some or all, under the names that
            `Candidate.names` gives. Nothing done to the copy, such as a hook, reaches the run.
        images: `images(split, limit=None)` yields batches of inputs and targets of the split `train` or `held_out` on
            the run's device, without augmentation, the same at each call; of so many examples at most. Raises
            ValueError for another split: nobody sees the test split.
        criterion: `criterion(outputs, targets)` is the task's mean loss of a batch, 0-dim and differentiable, without
            label smoothing and distillation.
        log: `log(name, value)` writes a finite number or a text into the step's row of `metrics.jsonl`: of a pruning
            method into the row `segment` as `method.NAME`, of a merge into the row `merge` as `merge.NAME`.
    """

    buffers: frozenset[str] = frozenset()
    model: Callable[..., Any] = _absent
    images: Callable[..., Iterator[tuple[Tensor, Tensor]]] = _absent
    criterion: Callable[[Tensor, Tensor], Tensor] = _absent
    log: Callable[[str, float | str], None] = _absent


# --- pruning --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PruningStep(Probe, Stage):
    """What a pruning method gets for choosing a segment's masks.

    Attributes:
        weights: The parent's prunable weights by parameter name, always on the CPU, so that decisions do not depend on
            the run's device.
        masks: The current masks, bool, True keeps, with the shapes of the weights.
        extra: The method's own tensors, under the names that `PruningMethod.extra` gave them.
        generator: A CPU generator seeded by (seed, segment).
        select: `select(scores, regrow=False, floor=0, sparsity=None, among=None)` returns masks that keep the highest
            scores, exactly as many as the segment's sparsity (or `sparsity`), `--masks.allocation`, `--masks.pattern`
            and `--masks.floor` (or `floor`, whichever keeps more of a layer) demand; ties keep the lower index. Only
            weights that are kept now can be kept, or with `regrow=True` all weights; of these, where bool masks `among`
            are given, only those that they keep. Raises RunError on a NaN score of a weight that can be kept, and with
            `lamp` on negative or infinite scores.
        gradients: `gradients(batches=1)` is the mean gradient of the training loss over that many training batches,
            with respect to the effective weights of the parent, including masked ones; CPU tensors. BatchNorm
            normalises by the batch, as in training; each call of a step takes the same batches.
        allocation: How `select` shares sparsity out between layers, by name.
        pattern: The pattern that `select` follows, such as `2:4`; None without one.
        floor: `--masks.floor`.
    """

    weights: Tensors
    masks: Tensors
    extra: Tensors
    generator: Generator
    select: Callable[..., Tensors]
    gradients: Callable[..., Tensors]
    allocation: str = "global"
    pattern: str | None = None
    floor: float = 0.0

    @property
    def stage(self) -> Stage:
        """The segment that begins: the step itself."""
        return self


@dataclass(frozen=True)
class TrainingStep:
    """What a method's hooks get at one optimizer step; tensors may require gradients.

    Attributes:
        weights: Prunable weights as the optimizer holds them.
        masks: 1 keeps and 0 prunes, with the shapes and types of the weights.
        extra: The method's own tensors.
        progress: Done fraction of the whole budget, 0 to 1, at the middle of the step; outside of training, at the end
            of the segment.
        target: Final sparsity of the prunable weights, 0 to 1 (`--sparsity`).
        weight_decay: The replica's weight decay; 0 outside of training.
        generator: A generator on the weights' device, seeded by (seed, segment, replica, step); None outside of
            training.
        replica: The replica's index in its segment; None outside of training.
    """

    weights: Tensors
    masks: Tensors
    extra: Tensors
    progress: float
    target: float = 0.0
    weight_decay: float = 0.0
    generator: Generator | None = None
    replica: int | None = None


class PruningMethod(ABC):
    """When and what to prune. Subclasses take annotated options in `__init__` and must implement `plan`.

    An instance keeps every option under its own name (`self.start`) and nothing else, as it may serve many runs. Under
    `--replicas.vary method.X` each replica has an instance with its value of X, whose `learning_rate` and hooks of
    training are called; all else is asked of the run's own instance.
    """

    allocation: ClassVar[str] = "global"
    """The default of `--masks.allocation` for this method."""

    @abstractmethod
    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        """Divide the budget into segments.

        The epochs add up to `budget.epochs`, and the last segment's sparsity is `budget.sparsity`. Raises ValueError
        with a message for the user if the options allow no valid plan. The sparsity may fall only if `masks` is
        overridden, to take weights back with `step.select(scores, regrow=True)`; they begin at 0.
        """

    def scores(self, step: PruningStep) -> Tensors:
        """The importance of each prunable weight; by default its magnitude. The highest scores are kept.

        Returns a tensor of the same shape for each of `step.weights`, without NaN for weights that are still kept.
        Negative and infinite scores are allowed, except with `--masks.allocation lamp`.
        """
        return {name: weight.abs() for name, weight in step.weights.items()}

    def masks(self, step: PruningStep) -> Tensors:
        """The segment's masks; by default they keep the weights with the highest scores among those still kept.

        Bool tensors on the CPU, with the names and in the order of `step.weights`; exactly round(sparsity · N) of all
        N values are False.
        """
        return step.select(self.scores(step))

    def learning_rate(self, stage: Stage) -> Schedule:
        """The segment's learning rate; by default its part of one schedule over the whole budget.

        It must depend on `stage` alone, as planning calls it too.
        """
        return stage.continued()

    def extra(self, weights: Tensors) -> Tensors:
        """Tensors of the method's own, which are trained, averaged and saved like parameters; by default none.

        Floating-point tensors of any shape on the CPU; called once per run. Hooks get them sorted by name, which may
        differ from the order of `weights`.
        """
        return {}

    def extra_trained(self, name: str) -> bool:
        """Whether the optimizer trains this extra tensor; by default it does, unless `update` is defined."""
        return type(self).update is PruningMethod.update

    def extra_decays(self, name: str) -> bool:
        """Whether this extra tensor gets the weight decay of weights; by default it does."""
        return True

    def update(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        """New values of extra tensors that the optimizer does not train, by name; by default none.

        Called without autograd at every step, after the backward pass; neither optimizer, nor weight decay, nor
        clipping touches what it returns, which holds from the next step on.

        Args:
            step: The step, with the weights that the gradients belong to.
            gradients: The gradient of the training loss, without `penalty`, with respect to each of the effective
                weights, masked ones included; must not be changed in place.
        """
        return {}

    def effective(self, step: TrainingStep) -> Tensors:
        """The weights that the forward pass uses, differentiable, 0 where masked.

        A method that overrides it keeps dense weights behind the masks: the run then does not mask weights in training,
        and the finished model holds the effective weights. Called at every step, and without gradients before a model
        is scored or saved; it must depend on `step` alone.
        """
        import torch

        masks = [step.masks[name] for name in step.weights]
        return dict(zip(step.weights, torch._foreach_mul(list(step.weights.values()), masks), strict=True))

    def penalty(self, step: TrainingStep) -> Tensor | None:
        """A differentiable 0-dim tensor added to the training loss, before loss scaling; by default none."""
        return None

    def gradients(self, step: TrainingStep, gradients: Tensors) -> Tensors:
        """Change the gradients of the prunable weights before the optimizer uses them; by default unchanged.

        Called after the backward pass and before clipping; the gradients of masked weights are 0 already.
        """
        return gradients


# --- merging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A model's score on a split.

    Attributes:
        value: The task's score, higher is better: the accuracy, 0 to 1, of a classification.
        loss: The task's mean loss: the cross-entropy of a classification, in nats.
    """

    value: float
    loss: float

    @property
    def accuracy(self) -> float:
        """The value, as a classification calls it."""
        return self.value


class Candidate(ABC):
    """A trained replica offered to the merge; its tensors are read from its file on demand.

    Attributes:
        index: The replica's index in its segment.
        score: Its held-out score, without label smoothing.
    """

    index: int
    score: Score

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the candidate's tensors: parameters, buffers and, behind `extra.`, the method's extra tensors."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor to the CPU."""


@dataclass(frozen=True)
class Soup:
    """A merged model.

    The run fails if names, shapes or types differ from the candidates', or a value is not finite.

    Attributes:
        tensors: The merged tensors, under the candidates' names.
        coefficients: Weight of each candidate, in order, adding up to 1. The optimizer's state is averaged with them;
            None makes the next segment start with a new optimizer.
        ingredients: Indices of the replicas that were used, at least one.
    """

    tensors: Tensors
    coefficients: tuple[float, ...] | None
    ingredients: tuple[int, ...]


@dataclass(frozen=True)
class MergeStep(Probe):
    """What a merge strategy gets. It uses the training or the held-out split, never the test split.

    Attributes:
        average: `average(candidates, coefficients)` is the weighted mean, computed one tensor at a time in float64 in
            the candidates' order; integer tensors come from the first candidate with a coefficient other than 0.
            Raises RunError unless there is a finite coefficient for each candidate and they add up to 1.
        score: `score(tensors)` is the held-out score of tensors under the candidates' names, with BatchNorm
            recalibrated or not as set by `--replicas.batchnorm`.
        loss: `loss(tensors)` is their mean loss on up to 1,000 held-out examples, differentiable, with the
            BatchNorm statistics among the tensors.
        fisher: `fisher(candidate, images=256)` is the diagonal of its empirical Fisher information over that many
            training images: a tensor of mean squared gradients for each parameter; tensors without a gradient are
            absent.
        parent: The model that the replicas started from.
        generator: A CPU generator seeded by (seed, segment).
        masks: The masks that the candidates share, by parameter name, bool, True keeps.
        stage: The segment that ends; None where finished models are merged.
    """

    average: Callable[[Sequence[Candidate], Sequence[float]], Tensors]
    score: Callable[[Tensors], Score]
    loss: Callable[[Tensors], Tensor]
    fisher: Callable[..., Tensors]
    parent: Mapping[str, Tensor]
    generator: Generator
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    stage: Stage | None = None


class MergeStrategy(ABC):
    """How the candidates of a segment become the next parent. Most strategies subclass `CoefficientMerge`."""

    max_replicas: ClassVar[int | None] = None
    """Train at most this many replicas, even if `--replicas.count` is higher."""

    @property
    def average_from(self) -> float | None:
        """The fraction of a segment from which replicas average their weights, as in `Segment.average_from`."""
        return None

    @property
    def average_decay(self) -> float:
        """The factor, 0 to 1, by which each step fades the steps before it in that average; 1, the plain mean.

        Below 1 it is an exponential moving average: a step's share is 1 − decay, and the plain mean's while that is
        more, as among the first steps. It goes by `average_from` above; a method's own means are plain.
        """
        return 1.0

    @abstractmethod
    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        """Combine one or more candidates, which share one mask, into one model with the same names and shapes.

        Called at the end of every segment that trained. A single candidate, as before `--replicas.start` or where the
        others did not stay finite, is returned unchanged: its tensors, the coefficients (1.0,) and its index.
        """


class CoefficientMerge(MergeStrategy):
    """A merge strategy that averages the candidates; it only chooses their coefficients."""

    @abstractmethod
    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        """One finite coefficient per candidate; they add up to 1."""

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        """The weighted mean with these coefficients; raises RunError if they are invalid."""
        weights = tuple(float(weight) for weight in self.coefficients(candidates, step))
        tensors = step.average(candidates, weights)  # first, as it checks the weights
        used = tuple(c.index for c, weight in zip(candidates, weights, strict=True) if weight)
        return Soup(tensors, weights, used)


# --- tasks ----------------------------------------------------------------------------------------


class Meter(Protocol):
    """Accumulates measures over the batches of a split; every metric of torchmetrics is one."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch, on the meter's device and without waiting for it."""

    def compute(self) -> Mapping[str, Any]:
        """The measures of all batches by name: numbers, 0-dim tensors, or plain lists beside them."""


class Task(ABC):
    """What a model is trained for: its loss, its score, and what its outputs must look like.

    Subclasses take annotated options in `__init__`, keep each under its own name, and keep nothing else.
    """

    score_name: ClassVar[str]
    """The measure that decides between models, higher is better: a word such as `accuracy`, for keys and tables."""
    stratified: ClassVar[bool] = False
    """Whether targets are class numbers, int64 [N]; then splits and subsets keep the classes' shares."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, 0-dim and differentiable; outputs are float32, or float64 in an evaluation."""

    @abstractmethod
    def meter(self, device: Any) -> Meter:
        """A new meter on the device; its measures include `score_name`."""

    @abstractmethod
    def num_outputs(self, targets: Tensor) -> int:
        """How many outputs a timm model needs (`num_classes`), from training targets [N, ...]."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: B027  (most tasks need it, none must have it)
        """Raise ValueError, with a message for the user, where outputs cannot be those for the targets.

        Called with one batch before anything is trained; the loss and the meter are tried on it, too.
        """

    def smoothed_loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The loss with label smoothing, for `--label_smoothing`; without it the option is refused."""
        raise NotImplementedError

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The mean loss of a batch against a teacher's outputs, for `--distill`; without it the option is refused."""
        raise NotImplementedError

    def mean_outputs(self, outputs: Iterable[Tensor]) -> Tensor:
        """The outputs of an ensemble from those of its members, which come one at a time; by default their mean."""
        members = iter(outputs)
        total, count = next(members), 1
        for each in members:
            total, count = total + each, count + 1
        return total / count

    def per_example(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Measures of each example, [N] each, of which the meter's under the same names are the means; by default none.

        For the interval of what a soup brought over its candidates.
        """
        return {}

    def constant_outputs(self, targets: Tensor) -> Tensor | None:
        """The outputs for one example that suit all these targets best, whatever the input; by default None.

        Against a model that answers so, a run says where a finished model has learned nothing.
        """
        return None

    def predict(self, outputs: Tensor) -> Tensor | None:
        """What is predicted, so that equal predictions can be counted; None where outputs are numbers of any size."""
        return None
