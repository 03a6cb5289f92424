"""What the three methods share: when the topology changes, how much of it, and the change itself. No torch import."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import ceil, cos, pi

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.schedules import check_option

ROUNDING = 1e-9


def check_interval(interval: float) -> None:
    """Raise ValueError unless `interval` is a usable fraction of the budget."""
    check_option("method.interval", interval, 1e-4 <= interval <= 1.0, "a fraction of the budget from 0.0001 to 1")


def check_batches(batches: int) -> None:
    """Raise ValueError unless `batches` is a usable number of training batches."""
    check_option("method.batches", batches, 1 <= batches <= 1000, "1 to 1000")


def updates(first: float, stop: float, interval: float) -> list[float]:
    """The times first, first + interval, … that lie before `stop`, up to rounding."""
    return [first + k * interval for k in range(max(0, ceil((stop - first) / interval - ROUNDING)))]


def segments(budget: Budget, times: list[float], sparsities: list[float]) -> tuple[Segment, ...]:
    """A segment from each time to the next, the last one to the end; times are rising fractions, the first 0."""
    return tuple(
        Segment(sparsity, (until - time) * budget.epochs)
        for time, until, sparsity in zip(times, [*times[1:], 1.0], sparsities, strict=True)
    )


def drop_fraction(alpha: float, time: float, end: float) -> float:
    """RigL's α/2 · (1 + cos(π t / T_end)): α at first, 0 from `end` on (arXiv 1911.11134, section 3)."""
    return alpha / 2.0 * (1.0 + cos(pi * min(time / end, 1.0)))


def now(step: PruningStep) -> float:
    """Where the segment starts, as a fraction of the budget."""
    return step.start / step.budget.epochs


def noise(step: PruningStep) -> Tensors:
    """A number between 0 and 1 a weight, from the step's generator."""
    return {name: w.new_empty(w.shape).uniform_(generator=step.generator) for name, w in step.weights.items()}


def highest(scores: Tensors, counts: Mapping[str, int]) -> Tensors:
    """Masks, True at so many of each layer's highest scores; of equal scores the first."""
    masks = {}
    for name, score in scores.items():
        order = score.flatten().argsort(descending=True, stable=True)
        mask = order.new_zeros(order.shape).bool()
        mask[order[: counts[name]]] = True
        masks[name] = mask.reshape(score.shape)
    return masks


def drop_and_grow(step: PruningStep, masks: Tensors, fraction: float, growth: Tensors) -> Tensors:
    """Drop this fraction of each layer's kept weights, the smallest, and grow as many where |growth| is largest.

    A layer of n kept weights drops ⌊fraction · n⌋. What was just dropped may grow again, and then was never away; any
    other weight that grows starts at 0, as masked weights are.

    Args:
        step: Gives the weights, and `select` the last word.
        masks: What is kept before, as many weights as the segment keeps.
        fraction: 0 to 1.
        growth: A number a weight.
    """
    kept_before = {name: int(mask.sum()) for name, mask in masks.items()}
    dropped = {name: int(fraction * count + ROUNDING) for name, count in kept_before.items()}
    strength = {name: w.abs().masked_fill(~masks[name], -1.0) for name, w in step.weights.items()}
    kept = highest(strength, {name: count - dropped[name] for name, count in kept_before.items()})
    growth = {name: growth[name].abs() for name in masks}
    grown = highest({name: g.masked_fill(kept[name], -1.0) for name, g in growth.items()}, dropped)
    # `select` returns exactly these, unless --masks.pattern forbids some: then the next best by growth take their place
    ranks = {name: 2.0 * kept[name] + grown[name] + 1e-6 * g / (1.0 + g) for name, g in growth.items()}
    return step.select(ranks, regrow=True)


class FixedSparsity(PruningMethod):
    """Random masks at the target sparsity from the start, whose weights move at every segment until `end`."""

    allocation = "erk"

    def __init__(self, drop: float, interval: float, end: float) -> None:
        check_option("method.drop", drop, 0.0 <= drop <= 1.0, "a fraction of the kept weights from 0 to 1")
        check_interval(interval)
        check_option("method.end", end, 0.0 < end <= 1.0, "a fraction of the budget above 0 and at most 1")
        self.drop, self.interval, self.end = drop, interval, end

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        times = [0.0, *updates(self.interval, self.end, self.interval)]
        return segments(budget, times, [budget.sparsity] * len(times))

    def masks(self, step: PruningStep) -> Tensors:
        if step.index == 0:
            return step.select(noise(step))
        return drop_and_grow(step, step.masks, self.fraction(now(step)), self.growth(step))

    def fraction(self, time: float) -> float:
        """How much of a layer is dropped, 0 to 1, at this fraction of the budget."""
        return drop_fraction(self.drop, time, self.end)

    @abstractmethod
    def growth(self, step: PruningStep) -> Tensors:
        """How much each weight deserves to grow; its magnitude counts."""
