"""Make a plan from options: checked segments, their learning rates, replicas and cost. Needs neither torch nor data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from sparsekit import schedules
from sparsekit.api import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.config.options import FitConfig, OptimizerConfig
from sparsekit.errors import UserError, first_line
from sparsekit.planning.replicas import Replica, axis_values, check_replicas, replicas_of, variation
from sparsekit.plugins.choices import described, find_choice
from sparsekit.plugins.registry import name_of

_SAMPLES = [i / 1000 for i in range(1001)]
_MIDDLES = [(i + 0.5) / 100 for i in range(100)]
_POINTS = 40
_TRIED = 100  # how many longer budgets are tried to find one that is long enough


@dataclass(frozen=True)
class PlannedSegment:
    """A segment with its replicas and steps.

    Attributes:
        stage: The segment in its plan.
        replicas: The replicas to train; empty for a segment that only prunes.
        steps: Optimizer steps of a replica of full length; 0 for a segment that only prunes, or without data.
    """

    stage: Stage
    replicas: tuple[Replica, ...]
    steps: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Optimizer steps of each replica."""
        return tuple(replica.steps(self.steps) for replica in self.replicas) if self.steps else ()


@dataclass(frozen=True)
class PlanRow:
    """A segment of a plan to show. Epochs are passes over the training data; learning rates are absolute.

    Learning rates are given as a lowest and a highest value, which differ if the schedule depends on the weights, as
    with ALLR.

    Attributes:
        segment: Index of the segment, from 0.
        start_epoch: Epochs before the segment.
        epochs: Length of the segment.
        sparsity: Fraction of the prunable weights masked after its pruning, 0 to 1.
        lr_first: Lowest and highest rate at its start, or at the peak after a warm-up.
        lr_last: Lowest and highest rate at its end.
        replicas: Number of replicas.
        lr_points: Lowest and highest rate at evenly spaced points from its start to its end.
        rewind: Index of the segment whose beginning the weights return to; None where they train on.
        d: Lowest and highest value of ALLR's factor; None where the rate does not depend on it.
    """

    segment: int
    start_epoch: float
    epochs: float
    sparsity: float
    lr_first: tuple[float, float]
    lr_last: tuple[float, float]
    replicas: int
    lr_points: tuple[tuple[float, float], ...] = ()
    rewind: int | None = None
    d: tuple[float, float] | None = None


@dataclass(frozen=True)
class PlanSummary:
    """A plan to show and for plan.json.

    Attributes:
        segments: One row per segment.
        critical_epochs: Replica-epochs along the critical path, of the longest replica of each segment.
        total_epochs: Replica-epochs of all replicas.
        vary: What replicas differ in (`--replicas.vary`).
        values: The value of each replica, where a segment trains them all.
    """

    segments: tuple[PlanRow, ...]
    critical_epochs: float
    total_epochs: float
    vary: str = "seed"
    values: tuple[float, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The content of plan.json."""
        return asdict(self)


def make_budget(config: FitConfig) -> Budget:
    """The budget of `--epochs` and `--sparsity`, with the learning-rate schedule of `--optimizer`."""
    o = config.optimizer
    return Budget(float(config.epochs), config.sparsity, o.warmup, decay_shape(o))


def decay_shape(optimizer: OptimizerConfig) -> Callable[[float], float]:
    """`--optimizer.schedule` after its warm-up: a function of the done fraction, from 1 to `--optimizer.min_lr`.

    Raises:
        UserError: a plugin's function raises, or returns what is no rate.
    """
    low, name = optimizer.min_lr, optimizer.schedule
    own = find_choice("schedule", name)
    shape: Callable[[float, float], float] = own or getattr(schedules, name)
    for done in _SAMPLES if own else ():
        try:
            rate = shape(done, low)
            valid = 0.0 <= rate < math.inf
        except Exception as error:
            raise UserError(
                f"{described('schedule', name)}: ({done:g}, {low:g}) raised {type(error).__name__}: {first_line(error)}"
            ) from error
        if not valid:
            raise UserError(
                f"{described('schedule', name)}: ({done:g}, {low:g}) is {rate}; a rate must be finite and 0 or more"
            )
    return lambda done: shape(done, low)


def make_stages(config: FitConfig) -> tuple[Stage, ...]:
    """The method's plan, checked, as one stage per segment.

    Raises:
        UserError: the method refuses its options, or its plan breaks the contract.
    """
    budget = make_budget(config)
    try:
        plan = tuple(config.method.plan(budget))
    except ValueError as error:
        raise UserError(str(error)) from error
    check_plan(f"method {type(config.method).__name__}", plan, budget)
    if type(config.method).masks is PruningMethod.masks:
        check_rising(f"method {type(config.method).__name__}", plan)
    return tuple(Stage(budget, plan, index) for index in range(len(plan)))


def start_from_sparsity(stages: tuple[Stage, ...], kept: int, total: int) -> tuple[Stage, ...]:
    """Adapt a plan to a model that is sparse already: no segment gets a lower sparsity than the model has.

    Args:
        stages: The method's plan.
        kept: Number of prunable weights that the model keeps.
        total: Number of prunable weights.

    Raises:
        UserError: the model is sparser than `--sparsity`.
    """
    sparsity = (total - kept) / total
    budget = stages[0].budget
    if round(budget.sparsity * total) < total - kept:
        raise UserError(
            f"--sparsity is {budget.sparsity:g}, but {sparsity:.2%} of the prunable weights of --model.init are 0; "
            f"give {math.ceil(1e4 * sparsity) / 1e4:g} or more, or start from a denser model"
        )
    plan = tuple(
        replace(segment, sparsity=sparsity) if round(segment.sparsity * total) < total - kept else segment
        for segment in stages[0].plan
    )
    return tuple(replace(stage, plan=plan) for stage in stages)


def check_plan(name: str, plan: tuple[Segment, ...], budget: Budget) -> None:
    """Check a plan against the contract; raises UserError, which names the method and the broken rule."""
    if not plan or not all(isinstance(segment, Segment) for segment in plan):
        raise UserError(f"{name}: plan() must return at least one Segment, got {plan!r}")
    for number, segment in enumerate(plan, 1):
        if not 0.0 <= segment.sparsity < 1.0:
            raise UserError(f"{name}: segment {number} has sparsity {segment.sparsity!r}; it must lie in [0, 1)")
        if not (math.isfinite(segment.epochs) and segment.epochs >= 0.0):
            raise UserError(f"{name}: segment {number} has {segment.epochs!r} epochs; it must be 0 or more")
        if segment.average_from is not None and not 0.0 <= segment.average_from < 1.0:
            raise UserError(f"{name}: segment {number} averages from {segment.average_from!r}; it must lie in [0, 1)")
        if segment.replicas is not None and segment.replicas < 1:
            raise UserError(f"{name}: segment {number} allows {segment.replicas!r} replicas; it must be 1 or more")
        if segment.rewind is not None and segment.rewind not in range(number - 1):
            raise UserError(
                f"{name}: plan[{number - 1}].rewind is {segment.rewind!r}; give the index of an earlier segment, below "
                f"{number - 1}"
            )
    total = sum(segment.epochs for segment in plan)
    if abs(total - budget.epochs) > 1e-6 * budget.epochs:
        raise UserError(f"{name}: its segments sum up to {total:g} epochs, not to the budget's {budget.epochs:g}")
    if plan[-1].sparsity != budget.sparsity:
        raise UserError(f"{name}: its last segment has sparsity {plan[-1].sparsity:g}, not {budget.sparsity:g}")


def check_rising(name: str, plan: tuple[Segment, ...]) -> None:
    """Raise UserError where the sparsity falls, for a method whose masks never take a pruned weight back."""
    for number, (before, after) in enumerate(pairwise(plan), 2):
        if after.sparsity < before.sparsity - 1e-9:
            raise UserError(
                f"{name}: segment {number} has sparsity {after.sparsity:g} after {before.sparsity:g}, but its masks "
                "take nothing back; let the plan rise, or define masks() with step.select(scores, regrow=True)"
            )


def segment_steps(stages: tuple[Stage, ...], steps_per_epoch: int) -> list[int]:
    """Optimizer steps of each segment, rounded so that they add up to the steps of the whole budget."""
    ends = [round(stage.end * steps_per_epoch) for stage in stages]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def check_steps(config: FitConfig, stages: tuple[Stage, ...], steps_per_epoch: int) -> None:
    """Raise UserError if a segment is too short for one optimizer step; the message suggests a number of epochs."""
    short = _too_short(stages, steps_per_epoch)
    if short is None:
        return
    enough = ""
    for epochs in range(config.epochs + 1, config.epochs + _TRIED):
        with contextlib.suppress(UserError):  # the method's own limits
            if _too_short(make_stages(replace(config, epochs=epochs)), steps_per_epoch) is None:
                enough = f" to {epochs}"
                break
    raise UserError(
        f"--epochs {config.epochs} is too short: segment {short.index + 1} of {len(stages)} lasts "
        f"{short.segment.epochs:.3g} epochs of {steps_per_epoch} optimizer steps; raise --epochs{enough}, lower "
        "--data.batch_size, or plan fewer segments"
    )


def _too_short(stages: tuple[Stage, ...], steps_per_epoch: int) -> Stage | None:
    """The first segment that has epochs but would take no optimizer step; None if there is none."""
    steps = segment_steps(stages, steps_per_epoch)
    return next(
        (stage for stage, count in zip(stages, steps, strict=True) if stage.segment.epochs > 0 and count < 1), None
    )


def make_plan(config: FitConfig, stages: tuple[Stage, ...], steps_per_epoch: int = 0) -> tuple[PlannedSegment, ...]:
    """Every segment with its replicas, and with its optimizer steps if `steps_per_epoch` is given.

    Raises:
        UserError: replicas cannot be varied as `--replicas.vary` says.
    """
    check_replicas(config, stages[0])
    steps = segment_steps(stages, steps_per_epoch)
    return tuple(
        PlannedSegment(stage, tuple(replicas_of(config, stage)), count)
        for stage, count in zip(stages, steps, strict=True)
    )


def check_rates(config: FitConfig, plan: tuple[PlannedSegment, ...]) -> None:
    """Raise UserError if a segment would train at a learning rate of 0 throughout, whatever its pruning changes."""
    for planned in plan:
        for method in {id(m): m for m in (r.method or config.method for r in planned.replicas)}.values():
            bounds = [method.learning_rate(replace(planned.stage, relative_change=x)) for x in (0.0, math.inf)]
            if not any(schedule(done) > 0.0 for schedule in bounds for done in _MIDDLES):
                name = name_of("method", f"{type(method).__module__}.{type(method).__qualname__}")
                raise UserError(
                    f"--method {name}, --optimizer.schedule {config.optimizer.schedule}: the learning rate is 0 "
                    f"throughout segment {planned.stage.index + 1} of {len(plan)}, which would train nothing; choose a "
                    "schedule that is above 0 there, or other options of the method"
                )


def nothing_to_merge(config: FitConfig, plan: tuple[PlannedSegment, ...]) -> list[str]:
    """A line for the user where a merge is chosen and no segment trains more than one replica; else none."""
    merge = config.merge
    if merge.max_replicas == 1 or merge.average_from is not None or any(len(each.replicas) > 1 for each in plan):
        return []
    name = name_of("merge", f"{type(merge).__module__}.{type(merge).__qualname__}")
    given = config.replicas
    why = f"--replicas.count {given.count}, --replicas.start {given.start:g}"
    more = "; replicas part from the start with --replicas.start 0" if given.count > 1 and given.start else ""
    return [f"--merge {name} has nothing to merge: no segment trains two replicas ({why}){more}"]


def varied(config: FitConfig, plan: tuple[PlannedSegment, ...]) -> list[str]:
    """Lines for the user about what the replicas of the plan differ in."""
    return variation(config, any(len(each.replicas) == config.replicas.count for each in plan))


def carries_optimizer(config: FitConfig, plan: tuple[PlannedSegment, ...], index: int) -> bool:
    """Whether the next segment that trains goes on with the optimizer's state at the end of segment `index`."""
    for planned in plan[index + 1 :]:
        if planned.stage.segment.rewind is not None:
            return False
        if planned.replicas:
            methods = [replica.method or config.method for replica in planned.replicas]
            return any(not s.restarts for method in methods for s in _bounds(method, planned.stage))
    return False


def summarize(config: FitConfig, plan: tuple[PlannedSegment, ...]) -> PlanSummary:
    """The plan as `sparsekit plan` prints it and plan.json holds it."""
    rows = tuple(_row(config, planned) for planned in plan)
    lengths = [[replica.length for replica in planned.replicas] for planned in plan]
    critical = sum(row.epochs * max(each, default=0.0) for row, each in zip(rows, lengths, strict=True))
    total = sum(row.epochs * length for row, each in zip(rows, lengths, strict=True) for length in each)
    critical, total = round(critical, 9), round(total, 9)  # parts of a whole number add up to it
    return PlanSummary(rows, critical, total, config.replicas.vary, tuple(axis_values(config)))


def _row(config: FitConfig, planned: PlannedSegment) -> PlanRow:
    stage = planned.stage
    bounds = _bounds(config.method, stage)
    lr = config.optimizer.lr
    factors = [schedule.d for schedule in bounds if schedule.d is not None]
    return PlanRow(
        segment=stage.index,
        start_epoch=stage.start,
        epochs=stage.segment.epochs,
        sparsity=stage.segment.sparsity,
        lr_first=_range(lr * _peak(schedule) for schedule in bounds),
        lr_last=_range(lr * schedule(1.0) for schedule in bounds),
        replicas=max(len(planned.replicas), 1),
        lr_points=tuple(_range(lr * schedule(i / _POINTS) for schedule in bounds) for i in range(_POINTS + 1)),
        rewind=stage.segment.rewind,
        d=_range(factors) if factors else None,
    )


def _bounds(method: PruningMethod, stage: Stage) -> list[Schedule]:
    """A segment's schedules where its pruning changes nothing, and where it changes all."""
    return [method.learning_rate(replace(stage, relative_change=x)) for x in (0.0, math.inf)]


def _peak(schedule: Schedule) -> float:
    """The highest multiplier of a schedule: its first value, or its peak after a warm-up."""
    return max(schedule(done) for done in _SAMPLES)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = sorted(values)
    return found[0], found[-1]


def table_rows(plan: PlanSummary) -> list[dict[str, object]]:
    """The plan as rows for `display.tables.plan_table`."""
    rows: list[dict[str, object]] = []
    for row in plan.segments:
        trained = row.epochs > 0
        lr = f"{_text(row.lr_first)} → {_text(row.lr_last)}" if trained else ""
        merge = f"of {row.replicas}" if row.replicas > 1 else ""
        d = _text(row.d) if row.d else ""
        rows.append({**asdict(row), "segment": row.segment + 1, "lr": lr, "d": d, "merge": merge})
    return rows


def _text(bounds: tuple[float, float]) -> str:
    low, high = (f"{value:.3g}" for value in bounds)
    return low if low == high else f"{low}…{high}"
