"""Which examples are trained on, held out, or cut off for tests: `--data.held_out`, `--data.fold`, `--data.limit`.

The choices depend on the number of examples and on their classes alone, so that they are the same in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekit.config.checks import fold_of, limit_of
from sparsekit.config.options import DataConfig
from sparsekit.data import order
from sparsekit.errors import UserError


def split(
    count: int, labels: Tensor | None, num_classes: int, config: DataConfig, *, held_out: bool, test: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sorted indices of the examples to train on, of those held out, and of those for tests.

    Args:
        count: Number of examples.
        labels: Their class numbers, int64 [count]; None where targets are no classes.
        num_classes: Number of classes.
        config: The options of `--data`.
        held_out: Whether the data set itself holds examples out, so that none are cut off.
        test: Whether it has test examples, so that none are cut off.

    Raises:
        UserError: a class would be missing in one of the parts, or a fold is asked for where examples are held out.
    """
    if config.fold is not None and held_out:
        raise UserError(f"--data.fold {config.fold}: {config.name} holds examples out itself; leave the option out")
    kept, cut, tests = torch.arange(count), None, None
    if config.fold is not None:
        if not test:  # first: the same in every fold
            kept, tests = _cut(labels, count, num_classes, config.held_out, "test")
        inner, outer = folded(len(kept), None if labels is None else labels[kept], config.fold)
        kept, cut = kept[inner], kept[outer]
    else:
        if not held_out:
            kept, cut = _cut(labels, count, num_classes, config.held_out, "held_out")
        if not test:
            some = None if labels is None else labels[kept]
            inner, outer = _cut(some, len(kept), num_classes, config.held_out, "test")
            kept, tests = kept[inner], kept[outer]
    if config.limit is not None:
        kept = limited(kept, None if labels is None else labels[kept], config.limit)
    return kept, cut, tests


def folded(count: int, labels: Tensor | None, fold: str) -> tuple[Tensor, Tensor]:
    """Hold out one of n folds, of every class its share.

    Args:
        count: Number of examples.
        labels: Their class numbers, int64 [count]; None where they have none.
        fold: `k/n`, the k-th of n folds.

    Returns:
        Sorted indices of the examples to train on, and of those held out.

    Raises:
        UserError: there are fewer examples than folds, or one part would lack a class.
    """
    which, folds = fold_of(fold)
    if folds > count:
        raise UserError(f"--data.fold {fold}: there are {count} examples; give fewer folds")
    dealt = torch.randperm(count, generator=order.generator("fold"))
    if labels is not None:
        dealt = dealt[labels[dealt].argsort(stable=True)]
    train = torch.ones(count, dtype=torch.bool)
    train[dealt[which - 1 :: folds]] = False
    parts = train.nonzero().flatten(), (~train).nonzero().flatten()
    _check_classes(labels, parts, f"--data.fold {fold}", "give fewer folds")
    return parts


def limited(indices: Tensor, labels: Tensor | None, limit: float) -> Tensor:
    """Some of the training examples, of every class its share; a smaller choice is part of a larger one.

    Args:
        indices: Sorted indices of the training examples, int64 [N].
        labels: Their class numbers, int64 [N]; None where they have none.
        limit: How many, 1 or more, or which fraction, below 1.

    Returns:
        Sorted indices.

    Raises:
        UserError: there are fewer examples, or a class would have none.
    """
    chosen = _mixed(len(indices), labels, "train limit")[: limit_of(limit, len(indices))]
    if labels is not None:
        _check_classes(labels, (chosen,), f"--data.limit {limit:g}", "give more")
    return indices[chosen].sort().values


def cut_test(count: int, labels: Tensor | None, fraction: float, option: str) -> tuple[Tensor, Tensor]:
    """Cut a fraction off for tests, of every class its share.

    Args:
        count: Number of examples.
        labels: Their class numbers, int64 [count]; None where they have none.
        fraction: Above 0 and below 1.
        option: The option that gives the fraction, for messages.

    Returns:
        Sorted indices of the other examples, and of those for tests.

    Raises:
        UserError: the fraction is none, or one part would lack a class.
    """
    if not 0.0 < fraction < 1.0 or not 0 < round(fraction * count) < count:
        raise UserError(
            f"{option} {fraction:g} of {count} examples; give a fraction above 0 and below 1 that leaves some"
        )
    mixed, tests = _mixed(count, labels, "test"), round(fraction * count)
    parts = mixed[tests:].sort().values, mixed[:tests].sort().values
    _check_classes(labels, parts, f"{option} {fraction:g}", "give another fraction, or more examples")
    return parts


def _cut(labels: Tensor | None, count: int, num_classes: int, fraction: float, name: str) -> tuple[Tensor, Tensor]:
    if labels is not None:
        return order.cut(labels, num_classes, fraction, name)
    mixed = _mixed(count, None, name)
    some = max(1, round(fraction * count))
    return mixed[some:].sort().values, mixed[:some].sort().values


def _mixed(count: int, labels: Tensor | None, name: str) -> Tensor:
    generator = order.generator(name)
    return torch.randperm(count, generator=generator) if labels is None else order.stratified(labels, generator)


def _check_classes(labels: Tensor | None, parts: tuple[Tensor, ...], option: str, remedy: str) -> None:
    """Raise UserError where a part lacks a class that is there."""
    for part in parts if labels is not None else ():
        assert labels is not None
        if lacking := sorted(set(labels.tolist()) - set(labels[part].tolist())):
            raise UserError(f"{option} leaves {len(part)} examples without any of class {lacking[0]}; {remedy}")
