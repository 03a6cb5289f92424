"""The replicas that a segment trains, and how they differ. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from sparsekit.api import Stage
from sparsekit.config.options import FitConfig
from sparsekit.errors import UserError

_LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "seed": ("integers", lambda v: float(v).is_integer()),
    "weight_decay": ("numbers of 0 or more", lambda v: 0.0 <= v < inf),
    "lr": ("numbers above 0", lambda v: 0.0 < v < inf),
    "epochs": ("fractions of the segment's length, above 0 and up to 1", lambda v: 0.0 < v <= 1.0),
    "subsample": ("fractions of the training data, above 0 and up to 1", lambda v: 0.0 < v <= 1.0),
}


@dataclass(frozen=True)
class Replica:
    """The seed and hyperparameters of one replica.

    Attributes:
        index: Its number in the segment, from 0.
        seed: Its seed; data order and augmentation derive from it, the run's seed and the segment.
        lr: Largest learning rate.
        weight_decay: Weight decay.
        length: Fraction of the segment's epochs that it trains, above 0 and up to 1.
        subsample: Class-balanced fraction of the training data that it uses, above 0 and up to 1.
    """

    index: int
    seed: int
    lr: float
    weight_decay: float
    length: float = 1.0
    subsample: float = 1.0

    def steps(self, segment: int) -> int:
        """Its optimizer steps in a segment of `segment` steps, at least one."""
        return max(1, round(self.length * segment))


def replicas_of(config: FitConfig, stage: Stage) -> list[Replica]:
    """The replicas of one segment: none if it only prunes, one before `--replicas.start`, else `--replicas.count`.

    The merge strategy and the segment may limit their number. `--replicas.vary` applies only if all
    `--replicas.count` replicas are trained; otherwise they differ in their seeds.
    """
    if stage.segment.epochs == 0.0:
        return []
    base = Replica(0, 0, config.optimizer.lr, config.optimizer.weight_decay)
    limits = [limit for limit in (config.merge.max_replicas, stage.segment.replicas) if limit is not None]
    count = min([config.replicas.count, *limits])
    early = stage.start < config.replicas.start * stage.budget.epochs - 1e-9
    if early:
        count = 1
    if count < config.replicas.count:
        return [replace(base, index=i, seed=i) for i in range(count)]
    return [_varied(replace(base, index=i, seed=i), config.replicas.vary, v) for i, v in enumerate(axis_values(config))]


def axis_values(config: FitConfig) -> list[float]:
    """The checked value of `--replicas.vary` for each replica; raises UserError if their number or range is wrong."""
    axis, values, count = config.replicas.vary, config.replicas.values, config.replicas.count
    if values is None:
        return _default_values(axis, count, config)
    if len(values) != count:
        raise UserError(f"--replicas.values has {len(values)} values for --replicas.count {count}; give one a replica")
    rule, valid = _LIMITS[axis]
    wrong = [v for v in values if not valid(v)]
    if wrong:
        raise UserError(f"--replicas.values: {wrong[0]:g} does not suit --replicas.vary {axis}; give {rule}")
    if axis == "seed" and len(set(values)) < count:
        raise UserError("--replicas.values: equal seeds make equal replicas; give different integers")
    return list(values)


def _default_values(axis: str, count: int, config: FitConfig) -> list[float]:
    spread = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
    if axis == "weight_decay":
        return [config.optimizer.weight_decay * 2.0 ** (2.0 * x - 1.0) for x in spread]
    if axis == "lr":
        return [config.optimizer.lr * 2.0 ** (2.0 * x - 1.0) for x in spread]
    if axis == "epochs":
        return [0.5 + 0.5 * x for x in spread] if count > 1 else [1.0]
    if axis == "subsample":
        return [0.8] * count
    return [float(i) for i in range(count)]


def _varied(replica: Replica, axis: str, value: float) -> Replica:
    if axis == "seed":
        return replace(replica, seed=int(value))
    if axis == "weight_decay":
        return replace(replica, weight_decay=value)
    if axis == "lr":
        return replace(replica, lr=value)
    if axis == "epochs":
        return replace(replica, length=value)
    return replace(replica, subsample=value)
