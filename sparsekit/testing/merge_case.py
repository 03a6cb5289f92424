"""A merge strategy under test: real candidates, and variations of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import Budget, MergeStrategy, PruningMethod, Score, Segment, Soup, Stage, TrainingStep
from sparsekit.config.options import ReplicasConfig
from sparsekit.data import ImageData
from sparsekit.errors import RunError
from sparsekit.merges.uniform import Uniform
from sparsekit.merging import merge as merging
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.state import State
from sparsekit.plugins.registry import Kind
from sparsekit.run import loop
from sparsekit.run.progress import first_progress
from sparsekit.testing import problem
from sparsekit.testing.cases import PluginCase
from sparsekit.testing.problem import clones, difference
from sparsekit.testing.rules import Broken, Unreached, describe
from sparsekit.training.prepare import prepare
from sparsekit.training.setup import Setup

SPARSITY = 0.8


class _Ground(PruningMethod):
    """Prunes once, and has a tensor of its own, so that merges meet one."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return Segment(0.0, 2.0), Segment(budget.sparsity, budget.epochs - 2.0)

    def extra(self, weights: Tensors) -> Tensors:
        return {"own": torch.linspace(-1.0, 1.0, 5)}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        return step.extra["own"].square().sum()


@dataclass(frozen=True)
class Ground:
    """What the candidates stand on: a prepared run, the segment's parent, its stage, and three trained replicas."""

    setup: Setup
    parent: State
    stage: Stage
    replicas: tuple[State, ...]
    scores: tuple[Score, ...]
    folder: Path


@dataclass(frozen=True)
class Merged:
    """What one merge made of which candidates, the data splits it looked at, and which input it changed, if any."""

    candidates: Sequence[FileCandidate]
    soup: Soup
    after: State
    splits: frozenset[str]
    touched: str


class MergeCase(PluginCase[MergeStrategy]):
    """A merge strategy under test; a context manager that owns the candidates' files."""

    kind: Kind = "merge"

    def __enter__(self) -> MergeCase:
        self._stack = ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def ground(self) -> Ground:
        """Three replicas that really were trained from one pruned parent."""
        config = problem.config(_Ground(), Uniform(), sparsity=SPARSITY, replicas=ReplicasConfig(count=3, start=0.0))
        setup = prepare(config)
        running = self._stack.enter_context(problem.job(setup))
        first, second = setup.plan
        segment, at = loop.prune_parent(running, first, first_progress(setup))
        at = loop.merge_candidates(running, segment, loop.train_replicas(running, segment, at))
        at = loop.evaluate(running, segment, at)
        segment, at = loop.prune_parent(running, second, at)
        at = loop.train_replicas(running, segment, at)
        replicas = tuple(problem.state_of(at.parent, candidate) for candidate in at.candidates)
        folder = running.checkpoints.folder
        return Ground(setup, at.parent, segment.stage, replicas, tuple(c.score for c in at.candidates), folder)

    def candidates(
        self,
        states: Sequence[State] | None = None,
        scores: Sequence[Score] | None = None,
        indices: Sequence[int] = (0, 1, 2),
    ) -> list[FileCandidate]:
        """Candidates in files, no more than the merge wants; by default the trained replicas."""
        ground = self.ground
        limit = self.make().max_replicas
        rows = list(zip(indices, states or ground.replicas, scores or ground.scores, strict=False))[:limit]
        return [FileCandidate.write(ground.folder / f"{i}.safetensors", i, state, score) for i, state, score in rows]

    def merge(
        self, candidates: list[FileCandidate], merge: MergeStrategy | None = None, parent: State | None = None
    ) -> Merged:
        """Merge as the scheduler does; raises RunError where the soup breaks the contract."""
        ground = self.ground
        setup = replace(ground.setup, config=replace(ground.setup.config, merge=merge or self.make()))
        parent = parent or ground.parent
        before, order, files = clones(parent.named()), list(candidates), [c.path.read_bytes() for c in candidates]
        splits: set[str] = set()
        with patch.object(ImageData, "evaluation_batches", _noting(splits, ImageData.evaluation_batches)):
            after, soup = merging.merge(setup, parent, candidates, ground.stage)
        touched = difference(before, parent.named())
        if candidates != order:
            touched = "the order of the candidates"
        elif files != [c.path.read_bytes() for c in candidates]:
            touched = "a candidate's file"
        return Merged(order, soup, after, frozenset(splits), touched)

    @cached_property
    def _usual(self) -> Merged | Exception:
        candidates, merge = self.candidates(), self.make()
        try:
            return self.merge(candidates, merge)
        except Exception as error:
            return error

    @property
    def usual(self) -> Merged:
        """The merge of the trained replicas; Unreached where it fails, which is `soups_are_whole`'s to tell."""
        if isinstance(self._usual, Exception):
            raise Unreached("merging three trained replicas failed, see soups_are_whole")
        return self._usual

    @property
    def usual_error(self) -> Exception | None:
        """What the merge of the trained replicas raised, if anything."""
        return self._usual if isinstance(self._usual, Exception) else None

    def try_merge(self, what: str, candidates: list[FileCandidate], **options: Any) -> Merged:
        """Merge; raise Broken with `what` where that fails."""
        try:
            return self.merge(candidates, **options)
        except Exception as error:
            text = str(error) if isinstance(error, RunError) else describe(error)
            raise Broken(f"{what}: {text}") from error


def _noting(splits: set[str], original: Callable[..., Any]) -> Callable[..., Any]:
    def evaluation_batches(self: ImageData, split: str, limit: int | None = None) -> Any:
        splits.add(split)
        return original(self, split, limit)

    return evaluation_batches
