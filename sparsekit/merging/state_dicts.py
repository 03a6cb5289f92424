"""A soup of state dicts that were trained under one set of masks, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, MergeStep, MergeStrategy, Probe, Score
from sparsekit.errors import RunError, UserError
from sparsekit.merging.average import average
from sparsekit.merging.merge import check_soup
from sparsekit.models.state import masked
from sparsekit.plugins.registry import name_of
from sparsekit.pruning import masks

Scorer = Callable[[Tensors], "float | Score"]
"""Scores a state dict: a number, higher is better, or a `Score`."""
Lossy = Callable[[Tensors], Tensor]
"""The held-out loss of a state dict, 0-dim and differentiable in its tensors."""
Fisher = Callable[[Tensors, int], Tensors]
"""The diagonal of a state dict's Fisher information over so many training examples, a tensor for each parameter."""


class StateDictCandidate(Candidate):
    """A state dict as a merge candidate; its score is measured when it is first used."""

    def __init__(self, index: int, tensors: Tensors, measure: Callable[[Tensors], Score]) -> None:
        self.index, self.tensors, self._measure = index, tensors, measure

    @cached_property
    def score(self) -> Score:  # type: ignore[override]
        """The state dict's score; raises UserError where there is nothing that scores."""
        return self._measure(self.tensors)

    def names(self) -> Sequence[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def soup(
    state_dicts: Sequence[Mapping[str, Tensor]],
    zeros: Tensors,
    merge: MergeStrategy,
    seed: int,
    score: Scorer | None = None,
    loss: Lossy | None = None,
    fisher: Fisher | None = None,
    parent: Mapping[str, Tensor] | None = None,
    probe: Probe | None = None,
) -> Tensors:
    """Merge state dicts into one with the same masks.

    Args:
        state_dicts: The models' state dicts, at least one, of equal names, shapes and types.
        zeros: The masks that all were trained under, True keeps.
        merge: The merge strategy.
        seed: Seed of merges that draw.
        score: Scores a state dict, for merges that compare.
        loss: The held-out loss of a state dict, for merges that differentiate it.
        fisher: The Fisher information of a state dict, for merges that weigh by it.
        parent: The state dict that all were trained from, for merges that look at the changes.
        probe: The network, for merges that look into it.

    Returns:
        A state dict on the CPU; its masked weights are exactly 0.

    Raises:
        UserError: the state dicts do not belong together, or the merge needs what was not given.
        RunError: the merge strategy broke its contract.
    """
    name = name_of("merge", f"{type(merge).__module__}.{type(merge).__qualname__}")
    most = merge.max_replicas
    if not state_dicts or (most is not None and len(state_dicts) > most):
        raise UserError(f"soup: {len(state_dicts)} state dicts for merge {name!r}; give 1 to {most or 'any number of'}")
    found = [_read(f"state dict {number}", each, zeros) for number, each in enumerate(state_dicts, 1)]
    for number, each in enumerate(found[1:], 2):
        _same(f"state dict {number}", each, found[0])

    def needed(keyword: str, given: Callable[..., Any] | None) -> Callable[..., Any]:
        if given is None:
            raise UserError(f"merge {name!r} needs soup(…, {keyword}=…), a function of a state dict")
        return given

    def measure(tensors: Tensors) -> Score:
        value = needed("score", score)(tensors)
        return value if isinstance(value, Score) else Score(float(value), float("nan"))

    def information(candidate: Candidate, images: int = 256) -> Tensors:
        return needed("fisher", fisher)(dict(found[candidate.index]), images)  # type: ignore[no-any-return]

    candidates = [StateDictCandidate(index, tensors, measure) for index, tensors in enumerate(found)]
    step = MergeStep(
        average=lambda some, coefficients: average(some, coefficients, candidates[0].names()),
        score=measure,
        loss=lambda tensors: needed("loss", loss)(tensors),
        fisher=information,
        parent=_Parent(name, None if parent is None else _read("parent", parent, zeros)),
        generator=torch.Generator().manual_seed(seed),
        masks=zeros,
        **vars(probe or Probe()),
    )
    merged = merge.merge(candidates, step)
    check_soup(type(merge).__name__, merged, candidates, found[0])
    tensors = {**merged.tensors, **{n: masked(merged.tensors[n], mask) for n, mask in zeros.items()}}
    masks.check(tensors, zeros, "the soup")
    return {key: tensors[key] for key in found[0]}


def _read(what: str, state_dict: Mapping[str, Tensor], zeros: Tensors) -> Tensors:
    """A state dict on the CPU; raises UserError where it was not trained under the masks."""
    if wrong := [name for name, value in state_dict.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{what}: {wrong[0]!r} is no tensor, which cannot be averaged")
    if missing := [name for name in zeros if name not in state_dict]:
        raise UserError(f"{what} has no {missing[0]!r}; give model.state_dict() of the model that was pruned")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    try:
        masks.check(tensors, zeros, what)
    except RunError as error:
        raise UserError(f"{error}; merge models that were trained under this pruner's masks") from error
    return tensors


def _same(what: str, tensors: Tensors, first: Tensors) -> None:
    """Raise UserError unless both have the same names, shapes and types."""
    for name in sorted({*tensors} ^ {*first}):
        raise UserError(f"{what} and state dict 1 differ: only one of them has {name!r}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (first[name].shape, first[name].dtype):
            one, other = ((tuple(t.shape), t.dtype) for t in (tensor, first[name]))
            raise UserError(f"{what}: {name!r} is {one[1]} {one[0]}, but {other[1]} {other[0]} in state dict 1")


class _Parent(Mapping[str, Tensor]):
    """The parent's tensors; where there are none, every access raises UserError."""

    def __init__(self, name: str, tensors: Tensors | None) -> None:
        self._name, self._tensors = name, tensors

    def __getitem__(self, key: str) -> Tensor:
        return self._given()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given())

    def __len__(self) -> int:
        return len(self._given())

    def _given(self) -> Tensors:
        if self._tensors is None:
            raise UserError(
                f"merge {self._name!r} asks for what the models were trained from (step.parent); give parent="
            )
        return self._tensors
