"""Candidates on disk, the streaming average, and one merge: masked again, BatchNorm measured again, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, MergeStep, Score, Soup, Stage
from sparsekit.errors import RunError
from sparsekit.evaluation import scores as evaluation
from sparsekit.models import state as states
from sparsekit.models.state import OPTIMIZER, State
from sparsekit.pruning import masks
from sparsekit.seeds import derive
from sparsekit.training import probes
from sparsekit.training.setup import Setup


class FileCandidate(Candidate):
    """A candidate in a safetensors file of its own, optimizer state beside the model's tensors.

    Attributes:
        path: The file.
        mask_digest: Hash of its masks.
        tested: Its test score, in the last merge; not for merges to see.
    """

    def __init__(self, path: Path, index: int, score: Score, mask_digest: str, tested: Score | None = None) -> None:
        self.path, self.index, self.score, self.mask_digest = path, index, score, mask_digest
        self.tested = tested

    @classmethod
    def write(cls, path: Path, index: int, state: State, score: Score, tested: Score | None = None) -> FileCandidate:
        """Save a trained replica and return its handle."""
        states.save(path, state.named() | {OPTIMIZER + name: t for name, t in state.optimizer.items()})
        return cls(path, index, score, masks.digest(state.masks), tested)

    def names(self) -> Sequence[str]:
        return [name for name in self._all_names() if not name.startswith(OPTIMIZER)]

    def optimizer_names(self) -> Sequence[str]:
        """Names under which `read` finds the optimizer's state."""
        return [name for name in self._all_names() if name.startswith(OPTIMIZER)]

    def read(self, name: str) -> Tensor:
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def _all_names(self) -> list[str]:
        with safe_open(str(self.path), framework="pt") as file:
            return sorted(file.keys())


def read(candidate: Candidate) -> Tensors:
    """All of a candidate's tensors, on the CPU."""
    return {name: candidate.read(name) for name in candidate.names()}


def average(candidates: Sequence[Candidate], coefficients: Sequence[float], names: Sequence[str]) -> Tensors:
    """The weighted mean of each named tensor, one tensor in memory at a time.

    Sums in float64, in the candidates' order. Integer tensors are not averaged: they come from the first candidate
    with a coefficient other than 0.

    Raises:
        RunError: the coefficients do not match the candidates, are not finite, or do not sum up to 1.
    """
    if len(coefficients) != len(candidates) or not abs(sum(coefficients) - 1.0) < 1e-6:
        raise RunError(
            f"a merge gave coefficients {list(coefficients)} for {len(candidates)} candidates; they must sum to 1"
        )
    used = [(c, weight) for c, weight in zip(candidates, coefficients, strict=True) if weight]
    scratch = torch.empty(2, 0, dtype=torch.float64)
    averaged = {}
    for name in names:
        first = used[0][0].read(name)
        if not first.is_floating_point() or len(used) == 1:
            averaged[name] = first.clone()  # what is read lies in the mapped file, and keeps all of that in memory
            continue
        # Sums in the same two places for every tensor: temporaries between results that stay would leave holes in the
        # heap, and memory would grow with the number of candidates.
        if scratch.shape[1] < first.numel():
            scratch = torch.empty(2, first.numel(), dtype=torch.float64)
        total, addend = scratch[:, : first.numel()].view(2, *first.shape)
        total.copy_(first).mul_(used[0][1])
        for candidate, weight in used[1:]:
            total += addend.copy_(candidate.read(name)).mul_(weight)
        averaged[name] = total.to(first.dtype, copy=True)
    return averaged


def merge(setup: Setup, parent: State, candidates: Sequence[FileCandidate], stage: Stage) -> tuple[State, Soup]:
    """One parent from the candidates; its optimizer state is averaged with the soup's coefficients, if it has any.

    Raises:
        RunError: the candidates' masks differ, or the soup breaks the contract.
    """
    if len({candidate.mask_digest for candidate in candidates}) > 1:
        raise RunError(f"segment {stage.index + 1}: the candidates' masks differ")

    def score(named: Tensors) -> Score:
        _install(setup, after.renamed(named))
        return setup.score("held_out")

    after = replace(parent, progress=stage.end / stage.budget.epochs, optimizer={})
    names = candidates[0].names()
    step = MergeStep(
        average=lambda some, coefficients: average(some, coefficients, names),
        score=score,
        loss=partial(probes.held_out_loss, setup, after),
        fisher=lambda candidate, images=256: probes.fisher(setup, after.renamed(read(candidate)), images),
        parent=parent.named(),
        generator=torch.Generator().manual_seed(derive(setup.config.seed, "merge", stage.index)),
    )
    soup = setup.config.merge.merge(candidates, step)
    check_soup(type(setup.config.merge).__name__, soup, candidates)
    merged = after.renamed(soup.tensors)
    if not states.keeps_dense(setup.method):
        merged = merged.with_weights({name: w * merged.masks[name] for name, w in merged.weights.items()})
    if len(soup.ingredients) > 1:
        merged = recalibrated(setup, merged)
    if soup.coefficients is not None:
        stored = average(candidates, soup.coefficients, candidates[0].optimizer_names())
        merged = replace(merged, optimizer={name.removeprefix(OPTIMIZER): t for name, t in stored.items()})
    masks.check(states.effective(setup.method, merged).tensors, merged.masks, f"soup of segment {stage.index + 1}")
    return merged, soup


def _install(setup: Setup, state: State) -> None:
    setup.install(state)
    if setup.config.replicas.batchnorm == "recalibrate":
        setup.recalibrate()


def recalibrated(setup: Setup, state: State) -> State:
    """The state with BatchNorm measured again, where `--replicas.batchnorm` asks for it and the model has any."""
    if setup.config.replicas.batchnorm == "average" or not evaluation.batchnorms(setup.model):
        return state
    _install(setup, state)
    buffers = {name for name, _ in setup.model.named_buffers()}
    measured = {name: t for name, t in states.capture(setup.model).items() if name in buffers}
    return replace(state, tensors={**state.tensors, **measured})


def check_soup(name: str, soup: Soup, candidates: Sequence[Candidate]) -> None:
    """Raise RunError unless a merge gave what the contract asks for."""
    if not isinstance(soup, Soup):
        raise RunError(f"merge {name}: merge() must return a Soup, got {type(soup).__name__}")
    if unknown := set(soup.ingredients) - {candidate.index for candidate in candidates}:
        raise RunError(f"merge {name}: the soup names replica {min(unknown)}, which is no candidate")
    expected = sorted(candidates[0].names())
    if sorted(soup.tensors) != expected:
        wrong = sorted(set(soup.tensors) ^ set(expected))
        raise RunError(f"merge {name}: the soup must have the candidates' tensors; {wrong[0]!r} is missing or too many")
    for key, tensor in soup.tensors.items():
        reference = candidates[0].read(key)
        if tensor.shape != reference.shape or tensor.dtype != reference.dtype:
            raise RunError(
                f"merge {name}: {key} has shape {tuple(tensor.shape)} and {tensor.dtype}, the candidates' "
                f"{tuple(reference.shape)} and {reference.dtype}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"merge {name}: {key} of the soup is not finite")
    if not soup.ingredients:
        raise RunError(f"merge {name}: the soup names no ingredient")
