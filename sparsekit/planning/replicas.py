"""The replicas that a segment trains, and how they differ. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from sparsekit.api import PruningMethod, Stage
from sparsekit.config.options import FitConfig, describe
from sparsekit.config.replica_axes import OF_METHOD, number_options, seen_in_training
from sparsekit.errors import UserError, first_line

_LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "seed": ("integers", lambda v: float(v).is_integer()),
    "weight_decay": ("numbers of 0 or more", lambda v: 0.0 <= v < inf),
    "lr": ("numbers above 0", lambda v: 0.0 < v < inf),
    "epochs": ("fractions of the segment's length, above 0 and up to 1", lambda v: 0.0 < v <= 1.0),
    "subsample": ("fractions of the training data, above 0 and up to 1", lambda v: 0.0 < v <= 1.0),
    "label_smoothing": ("fractions from 0 to below 1", lambda v: 0.0 <= v < 1.0),
    "augment": ("strengths from 0 to 4", lambda v: 0.0 <= v <= 4.0),
}
_SMOOTHING = 0.1
"""What label smoothing varies around where there is none."""


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
        label_smoothing: Label smoothing of its training loss, from 0 to below 1.
        augment: Strength of its augmentation, 0 to 4, where the run augments.
        method: The method whose hooks of training and learning rate it follows; None for the run's own.
    """

    index: int
    seed: int
    lr: float
    weight_decay: float
    length: float = 1.0
    subsample: float = 1.0
    label_smoothing: float = 0.0
    augment: float = 1.0
    method: PruningMethod | None = None

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
    base = Replica(
        0, 0, config.optimizer.lr, config.optimizer.weight_decay,
        label_smoothing=config.label_smoothing, augment=config.data.augment_strength,
    )  # fmt: skip
    limits = [limit for limit in (config.merge.max_replicas, stage.segment.replicas) if limit is not None]
    count = min([config.replicas.count, *limits])
    early = stage.start < config.replicas.start * stage.budget.epochs - 1e-9
    if early:
        count = 1
    if count < config.replicas.count:
        return [replace(base, index=i, seed=i) for i in range(count)]
    return [_varied(config, replace(base, index=i, seed=i), value) for i, value in enumerate(axis_values(config))]


def check_replicas(config: FitConfig, stage: Stage) -> None:
    """Raise UserError where the values of `--replicas.vary` do not suit, or would change the plan of the run."""
    axis, values = config.replicas.vary, axis_values(config)
    plan = tuple(config.method.plan(stage.budget)) if axis.startswith(OF_METHOD) else ()
    for value in values if plan else ():
        method = _method(config, value)
        try:
            own = tuple(method.plan(stage.budget))
        except ValueError as error:
            raise UserError(_unsuited(axis, value, first_line(error))) from error
        if own != plan:
            raise UserError(
                f"--replicas.vary {axis}: with {value:g} the method plans other segments, but replicas share one plan; "
                "compare its values in runs of their own (sparsekit sweep)"
            )


def variation(config: FitConfig, forks: bool) -> list[str]:
    """Lines for the user about what replicas differ in beside the seeds that they have anyway.

    Args:
        config: The options.
        forks: Whether a segment trains all `--replicas.count` replicas.
    """
    axis, values = config.replicas.vary, axis_values(config)
    if config.replicas.values is None and (axis == "seed" or len(values) == 1):
        return []
    if not forks:
        return [f"--replicas.vary {axis} has no effect: no segment trains all of --replicas.count {len(values)}"]
    lines = [f"replicas differ in {axis}: {', '.join(f'{value:.4g}' for value in values)}"]
    name = axis.removeprefix(OF_METHOD)
    if name != axis and not seen_in_training(type(config.method), name):
        lines.append(
            f"--replicas.vary {axis}: no hook of training seems to read it; scores and masks follow --{axis} alone"
        )
    return lines


def axis_values(config: FitConfig) -> list[float]:
    """The checked value of `--replicas.vary` for each replica; raises UserError if their number or range is wrong."""
    axis, values, count = config.replicas.vary, config.replicas.values, config.replicas.count
    if values is None:
        return _default_values(axis, count, config)
    if len(values) != count:
        raise UserError(f"--replicas.values has {len(values)} values for --replicas.count {count}; give one a replica")
    if axis.startswith(OF_METHOD):
        for value in values:
            _method(config, value)
        return list(values)
    _check_values(axis, values)
    if axis == "seed" and len(set(values)) < count:
        raise UserError("--replicas.values: equal seeds make equal replicas; give different integers")
    return list(values)


def _check_values(axis: str, values: Sequence[float], base: str = "") -> None:
    rule, valid = _LIMITS[axis]
    wrong = [v for v in values if not valid(v)]
    if wrong and base:
        raise UserError(f"--replicas.vary {axis}: by default up to {max(wrong):g} with {base}; give --replicas.values")
    if wrong:
        raise UserError(f"{_unsuited(axis, wrong[0])}; give {rule}")


def _unsuited(axis: str, value: float, why: str = "") -> str:
    return f"--replicas.values: {value:g} does not suit --replicas.vary {axis}{': ' if why else ''}{why}"


def _default_values(axis: str, count: int, config: FitConfig) -> list[float]:
    spread = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
    if axis == "weight_decay":
        return [config.optimizer.weight_decay * 2.0 ** (2.0 * x - 1.0) for x in spread]
    if axis == "lr":
        return [config.optimizer.lr * 2.0 ** (2.0 * x - 1.0) for x in spread]
    if axis == "augment":
        base = config.data.augment_strength
        if base == 0.0:
            raise UserError("--replicas.vary augment: --data.augment_strength is 0; give --replicas.values")
        values = [base * 2.0 ** (2.0 * x - 1.0) for x in spread]
        _check_values(axis, values, f"--data.augment_strength {base:g}")
        return values
    if axis == "label_smoothing":
        base = config.label_smoothing
        values = [2.0 * (base or _SMOOTHING) * x for x in spread] if count > 1 else [base]
        _check_values(axis, values, f"--label_smoothing {base:g}")
        return values
    if axis == "epochs":
        return [0.5 + 0.5 * x for x in spread] if count > 1 else [1.0]
    if axis == "subsample":
        return [0.8] * count
    return [float(i) for i in range(count)]


def _varied(config: FitConfig, replica: Replica, value: float) -> Replica:
    axis = config.replicas.vary
    if axis.startswith(OF_METHOD):
        return replace(replica, method=_method(config, value))
    if axis == "seed":
        return replace(replica, seed=int(value))
    if axis == "weight_decay":
        return replace(replica, weight_decay=value)
    if axis == "lr":
        return replace(replica, lr=value)
    if axis == "epochs":
        return replace(replica, length=value)
    if axis == "label_smoothing":
        return replace(replica, label_smoothing=value)
    if axis == "augment":
        return replace(replica, augment=value)
    return replace(replica, subsample=value)


def _method(config: FitConfig, value: float) -> PruningMethod:
    """The run's method with another value of the option that is varied; raises UserError where it refuses the value."""
    axis, cls = config.replicas.vary, type(config.method)
    name = axis.removeprefix(OF_METHOD)
    whole = number_options(cls)[name]
    if whole and not float(value).is_integer():
        raise UserError(f"{_unsuited(axis, value)}; give integers")
    options: dict[str, Any] = {key: own for key, own in describe(config)["method"].items() if key != "name"}
    try:
        return cls(**options | {name: int(value) if whole else value})
    except ValueError as error:
        raise UserError(_unsuited(axis, value, first_line(error))) from error
