"""Shapes of `--optimizer.schedule`; parts for methods: checks, ramp, cycles, retraining schedules. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi, sqrt
from typing import Literal

from sparsekit.api import Budget, Schedule, Segment, Stage

Retraining = Literal["ft", "lrw", "slr", "clr", "llr", "allr"]
RETRAIN_WARMUP = 0.1


def cosine(done: float, low: float) -> float:
    """Half a cosine, from 1 to `low`."""
    return low + (1.0 - low) * (1.0 + cos(pi * done)) / 2.0


def linear(done: float, low: float) -> float:
    """A straight line, from 1 to `low`."""
    return low + (1.0 - low) * (1.0 - done)


def constant(done: float, low: float) -> float:
    """1 throughout."""
    return 1.0


def check_option(option: str, value: float, valid: bool, rule: str) -> None:
    """Check an option of a plugin, as in `check_option("method.start", start, 0 <= start < 1, "a fraction …")`.

    Args:
        option: The option without its dashes.
        value: Its value.
        valid: Whether the value is valid.
        rule: Which values are valid, for the message.

    Raises:
        ValueError: the value is not valid; the message has the option, the value and the rule.
    """
    if not valid:
        raise ValueError(f"--{option} is {value:g}; give {rule}")


def cubic_sparsity(time: float, start: float, end: float, initial: float, final: float) -> float:
    """The sparsity of GMP's ramp at a time, s(t) = s_f + (s_i − s_f)(1 − (t − t0)/(t1 − t0))³ (arXiv 1710.01878).

    It is constant outside of [t0, t1], from `start` to `end`. Times are in any one unit; sparsities from 0 to 1.
    """
    if time >= end:
        return final
    done = max(0.0, (time - start) / (end - start))
    return final + (initial - final) * (1.0 - done) ** 3


def check_ramp(start: float, end: float, interval: float) -> None:
    """Raise ValueError unless these are a ramp's `method.start`, `.end` and `.interval`, fractions of the budget."""
    check_option("method.start", start, 0.0 <= start < 1.0, "a fraction of the budget from 0 to below 1")
    above = f"a fraction of the budget above --method.start ({start:g}) and below 1"
    check_option("method.end", end, start < end < 1.0, above)
    check_option("method.interval", interval, 1e-4 <= interval <= 1.0, "a fraction of the budget from 0.0001 to 1")


def gradual_plan(
    budget: Budget, start: float, end: float, interval: float, initial: float, stop: float
) -> tuple[Segment, ...]:
    """Segments that prune on a cubic ramp at start, start + interval, … and end, then every interval until `stop`.

    A step of sparsity 0, such as the first with `initial` 0, starts no segment.

    Args:
        budget: The budget.
        start: Start of the ramp, as a fraction of the budget.
        end: End of the ramp, as a fraction of the budget.
        interval: Distance of two prunings, as a fraction of the budget.
        initial: Sparsity at the start, as a fraction of the final sparsity.
        stop: No pruning from this fraction of the budget on, except at `end`.
    """
    tolerance = 1e-9
    times = [start]
    while times[-1] + interval < end - tolerance:
        times.append(times[-1] + interval)
    if end > times[-1] + tolerance:
        times.append(end)
    while times[-1] + interval < stop - tolerance:
        times.append(times[-1] + interval)
    steps = [(t, cubic_sparsity(t, start, end, initial * budget.sparsity, budget.sparsity)) for t in times]
    steps = [(0.0, 0.0), *(step for step in steps if step[1] > 0.0 or budget.sparsity == 0.0)]
    if steps[1:] and steps[1][0] <= tolerance:  # the first pruning is at the very start
        steps = [(0.0, steps[1][1]), *steps[2:]]
    ends = [t for t, _ in steps[1:]] + [1.0]
    return tuple(
        Segment(sparsity, (until - t) * budget.epochs) for (t, sparsity), until in zip(steps, ends, strict=True)
    )


def cycles_plan(budget: Budget, dense: float, cycles: int) -> tuple[Segment, ...]:
    """A dense phase, then cycles of equal length, each of which prunes the same fraction of the remaining weights.

    The sparsity of cycle k of n is 1 − (1 − S)^(k/n) (arXiv 2306.16788, section 2).

    Args:
        budget: The budget, with the final sparsity S.
        dense: Fraction of the budget for the dense phase.
        cycles: Number of cycles.
    """
    epochs = (1.0 - dense) * budget.epochs / cycles
    rounds = [Segment(1.0 - (1.0 - budget.sparsity) ** (k / cycles), epochs) for k in range(1, cycles)]
    return (Segment(0.0, dense * budget.epochs), *rounds, Segment(budget.sparsity, epochs))


def dense_schedule(budget: Budget) -> Schedule:
    """The whole original schedule, compressed into the dense phase; starts with a new optimizer."""
    return Schedule(budget.rate)


def retraining_schedule(name: Retraining, stage: Stage) -> Schedule:
    """The learning rate of one retraining phase (arXiv 2111.00843, section 3), as a multiplier of the largest rate.

    `ft` keeps the original schedule's last rate; `lrw` repeats the original schedule's end, of the same length; `slr`
    compresses the whole original schedule, at its largest rate where that warmed up; `clr` is a cosine from 1 to the
    last rate; `llr` falls linearly from 1 to 0; `allr` falls linearly to 0 from a rate that depends on how much the
    pruning changed the weights. All but `ft` and `lrw` warm up over the first tenth, on half a cosine from 0.

    The original schedule is that of `stage.budget`.
    """
    budget, dense_epochs, epochs = stage.budget, stage.plan[0].epochs, stage.segment.epochs
    last = budget.decay(1.0)
    if name == "ft":
        return Schedule(lambda done: last)
    if name == "lrw":
        replayed = min(epochs / dense_epochs, 1.0)
        return Schedule(lambda done: budget.rate(1.0 - replayed * (1.0 - done)))
    if name == "slr":
        return _warmed_up(lambda done: budget.rate(max(done, budget.warmup)))
    if name == "clr":
        return _warmed_up(lambda done: cosine(done, last))
    if name == "llr":
        return _warmed_up(lambda done: 1.0 - done)
    d = allr_factor(stage)
    return replace(_warmed_up(lambda done: d * (1.0 - done)), d=d)


def restarted_schedule(name: Retraining | None, stage: Stage) -> Schedule:
    """The whole original schedule in the first segment, then `name` after each pruning; None: one schedule goes on."""
    if name is None:
        return stage.continued()
    return retraining_schedule(name, stage) if stage.index else dense_schedule(stage.budget)


def allr_factor(stage: Stage) -> float:
    """ALLR's d = clip(‖W − W_p‖₂ / (‖W‖₂ √s), min(T_rt / T, 1), 1) (arXiv 2111.00843, section 3.2).

    s is the fraction of the remaining weights that this phase pruned, T the epochs of the dense phase, T_rt those of
    this phase; the norms are over all parameters, as in the authors' code.
    """
    lowest = min(stage.segment.epochs / stage.plan[0].epochs, 1.0)
    pruned = stage.pruned_fraction
    change = stage.relative_change / sqrt(pruned) if pruned > 0.0 else 0.0
    return min(max(change, lowest), 1.0)


def _warmed_up(decay: Callable[[float], float]) -> Schedule:
    def multiplier(done: float) -> float:
        if done < RETRAIN_WARMUP:
            return decay(0.0) * (1.0 - cosine(done / RETRAIN_WARMUP, 0.0))
        return decay((done - RETRAIN_WARMUP) / (1.0 - RETRAIN_WARMUP))

    return Schedule(multiplier)
