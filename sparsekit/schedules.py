"""Parts for methods: option checks, the cubic ramp, cycles of pruning, and retraining schedules. No torch."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sqrt
from typing import Literal

from sparsekit.api import Budget, Schedule, Segment, Stage

Retraining = Literal["ft", "lrw", "slr", "clr", "llr", "allr"]
RETRAIN_WARMUP = 0.1


def check_option(option: str, value: float, valid: bool, rule: str) -> None:
    """Check one option of a plugin, such as `check_option("method.start", start, 0 <= start < 1, "a fraction …")`.

    Raises:
        ValueError: unless `valid`; the message names the option, its value and the rule.
    """
    if not valid:
        raise ValueError(f"--{option} is {value:g}; give {rule}")


def cubic_sparsity(time: float, start: float, end: float, initial: float, final: float) -> float:
    """GMP's ramp, s(t) = s_f + (s_i − s_f)(1 − (t − t0)/(t1 − t0))³, constant outside [t0, t1] (arXiv 1710.01878).

    All times in one unit; sparsities 0 to 1.
    """
    if time >= end:
        return final
    done = max(0.0, (time - start) / (end - start))
    return final + (initial - final) * (1.0 - done) ** 3


def gradual_plan(
    budget: Budget, start: float, end: float, interval: float, initial: float, stop: float
) -> tuple[Segment, ...]:
    """Segments of a cubic ramp: prune at start, start + interval, … and end, then every interval until `stop`.

    `start`, `end`, `interval` and `stop` are fractions of the budget. A step that would prune nothing, such as
    the first with `initial` 0, starts no segment.
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
    if steps[1:] and steps[1][0] <= tolerance:  # pruned from the very first step
        steps = [(0.0, steps[1][1]), *steps[2:]]
    ends = [t for t, _ in steps[1:]] + [1.0]
    return tuple(
        Segment(sparsity, (until - t) * budget.epochs) for (t, sparsity), until in zip(steps, ends, strict=True)
    )


def cycles_plan(budget: Budget, dense: float, cycles: int) -> tuple[Segment, ...]:
    """A dense phase of `dense` of the budget, then `cycles` equal rounds of pruning the same fraction of what remains.

    After round k of n the sparsity is 1 − (1 − S)^(k/n) (arXiv 2306.16788, section 2).
    """
    epochs = (1.0 - dense) * budget.epochs / cycles
    rounds = [Segment(1.0 - (1.0 - budget.sparsity) ** (k / cycles), epochs) for k in range(1, cycles)]
    return (Segment(0.0, dense * budget.epochs), *rounds, Segment(budget.sparsity, epochs))


def dense_schedule(budget: Budget) -> Schedule:
    """The original schedule, compressed into the dense phase."""
    return Schedule(budget.rate)


def retraining_schedule(name: Retraining, stage: Stage) -> Schedule:
    """The learning rate of one retraining phase (arXiv 2111.00843, section 3), as a multiplier of the largest rate.

    `ft` stays at the original schedule's last rate; `lrw` replays its last stretch of the same length; `slr`
    compresses all of it; `clr` falls as a cosine to its last rate; `llr` falls linearly to 0; `allr` does so from
    a rate adapted to what the pruning changed. All but `ft` and `lrw` warm up over the first tenth.
    """
    budget, dense_epochs, epochs = stage.budget, stage.plan[0].epochs, stage.segment.epochs
    last = budget.decay(1.0)
    if name == "ft":
        return Schedule(lambda done: last)
    if name == "lrw":
        replayed = min(epochs / dense_epochs, 1.0)
        return Schedule(lambda done: budget.rate(1.0 - replayed * (1.0 - done)))
    if name == "slr":
        return _warmed_up(budget.decay)
    if name == "clr":
        return _warmed_up(lambda done: last + (1.0 - last) * (1.0 + cos(pi * done)) / 2.0)
    factor = allr_factor(stage) if name == "allr" else 1.0
    return _warmed_up(lambda done: factor * (1.0 - done))


def allr_factor(stage: Stage) -> float:
    """ALLR's d = clip(‖W − W_p‖₂ / (‖W‖₂ √s), min(T_rt / T, 1), 1) (arXiv 2111.00843, section 3.2).

    s is the fraction of the remaining weights that this phase pruned, T the epochs of the dense phase and T_rt those
    of this one; norms over the prunable weights.
    """
    lowest = min(stage.segment.epochs / stage.plan[0].epochs, 1.0)
    pruned = stage.pruned_fraction
    change = stage.relative_change / sqrt(pruned) if pruned > 0.0 else 0.0
    return min(max(change, lowest), 1.0)


def _warmed_up(decay: Callable[[float], float]) -> Schedule:
    def multiplier(done: float) -> float:
        if done < RETRAIN_WARMUP:
            return decay(0.0) * done / RETRAIN_WARMUP
        return decay((done - RETRAIN_WARMUP) / (1.0 - RETRAIN_WARMUP))

    return Schedule(multiplier)
