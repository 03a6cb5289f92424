"""Comparing tensors and objects before and after a plugin's call, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module

from sparsekit._types import Tensors


def clones(tensors: Tensors) -> Tensors:
    """A copy of each tensor."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def difference(left: Tensors, right: Tensors) -> str:
    """The first name that one set lacks, or under which the sets differ by a bit; empty if they are equal."""
    names = [*left, *(set(right) - set(left))]
    return next((n for n in names if n not in left or n not in right or not same_bits(left[n], right[n])), "")


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are of the same type and shape, and equal; NaN equals NaN."""
    alike = left.dtype is right.dtype and left.shape == right.shape
    return alike and torch.equal(left.nan_to_num(), right.nan_to_num())


def not_finite(tensors: Tensors) -> str:
    """The name of the first floating-point tensor with a value that is not finite; empty if all are."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), "")


def revived(weights: Tensors, masks: Tensors) -> str:
    """How many masked weights of the first layer that has some are not 0, as `3 masked weights of NAME`; or empty."""
    for name, mask in masks.items():
        if count := int((weights[name][mask == 0] != 0).sum()):
            return f"{count} masked weights of {name}"
    return ""


def frozen(value: Any) -> Any:
    """An object and all that it holds as plain data, to compare with what it holds later."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().cpu().flatten().tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [frozen(item) for item in value]
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        return (type(value).__name__, frozen(vars(value)))
    return repr(value)


def first_change(before: dict[str, Any], after: object) -> str:
    """The first attribute of an object that is not as in `before`, its frozen `vars`; empty if nothing changed."""
    now = frozen(vars(after))
    return next((name for name in [*before, *now] if before.get(name, ...) != now.get(name, ...)), "")


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the global generators of random, numpy and torch, and restore them at the end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextmanager
def global_draws() -> Iterator[list[str]]:
    """Which of the global generators are drawn from within it, by name; known at its end."""
    found: list[str] = []
    before = _global_states()
    yield found
    found += [name for name, state in _global_states().items() if state != before[name]]


def _global_states() -> dict[str, Any]:
    numpy = np.random.get_state(legacy=False)
    return {
        "Python's random": random.getstate(),
        "numpy.random": repr(numpy["state"]["key"].tobytes()) + str(numpy["state"]["pos"]),
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
    }


@contextmanager
def process_settings() -> Iterator[list[str]]:
    """Which of torch's settings for the whole process are changed within it, by name; they are put back at its end."""
    found: list[str] = []
    hooks = [value for name, value in vars(module).items() if name.startswith("_global_") and isinstance(value, dict)]
    before = _settings(hooks)
    held = [dict(each) for each in hooks]
    try:
        yield found
    finally:
        found += [name for name, value in _settings(hooks).items() if value != before[name]]
        _put_back(before, hooks, held)


def _put_back(before: dict[str, Any], hooks: list[dict[Any, Any]], held: list[dict[Any, Any]]) -> None:
    torch.set_grad_enabled(before["torch.set_grad_enabled"])
    torch.set_default_dtype(before["torch.set_default_dtype"])
    if torch.are_deterministic_algorithms_enabled() != before["torch.use_deterministic_algorithms"]:
        torch.use_deterministic_algorithms(before["torch.use_deterministic_algorithms"])  # which imports much: 2 s
    for each, kept in zip(hooks, held, strict=True):
        each.clear()
        each.update(kept)


def _settings(hooks: list[dict[Any, Any]]) -> dict[str, Any]:
    return {
        "torch.set_grad_enabled": torch.is_grad_enabled(),
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "the hooks of all modules": [list(each) for each in hooks],
    }
