"""A merge strategy under test: merges of really trained replicas, and of variations of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import Budget, MergeStrategy, PruningMethod, Score, Segment, Soup, Stage, TrainingStep
from sparsekit.config.options import ReplicasConfig
from sparsekit.data.images import ImageData
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
from sparsekit.testing.compare import clones, difference
from sparsekit.testing.rules import Broken, describe
from sparsekit.training.setup import Setup


class _PrunesOnce(PruningMethod):
    """Prunes once, and has a tensor of its own, which merges meet too."""

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return Segment(0.0, 2.0), Segment(budget.sparsity, budget.epochs - 2.0)

    def extra(self, weights: Tensors) -> Tensors:
        return {"own": torch.linspace(-1.0, 1.0, 5)}

    def penalty(self, step: TrainingStep) -> Tensor | None:
        return step.extra["own"].square().sum()


@dataclass(frozen=True)
class TrainedSegment:
    """Three replicas trained from one pruned parent, with their held-out scores, and the run that they come from."""

    setup: Setup
    parent: State
    stage: Stage
    replicas: tuple[State, ...]
    scores: tuple[Score, ...]


@cache
def trained_segment() -> TrainedSegment:
    """Train three replicas from a parent of sparsity 0.8. Merges get copies, so that once a process is enough."""
    config = problem.config(_PrunesOnce(), Uniform(), sparsity=0.8, replicas=ReplicasConfig(count=3, start=0.0))
    setup = problem.prepare(config)
    first, second = setup.plan
    with problem.job(setup) as context:
        segment, at = loop.prune_parent(context, first, first_progress(setup))
        at = loop.merge_candidates(context, segment, loop.train_replicas(context, segment, at))
        segment, at = loop.prune_parent(context, second, loop.evaluate(context, segment, at))
        at = loop.train_replicas(context, segment, at)
        replicas = tuple(problem.state_of(at.parent, candidate) for candidate in at.candidates)
    return TrainedSegment(setup, at.parent, segment.stage, replicas, tuple(c.score for c in at.candidates))


@dataclass(frozen=True)
class Merged:
    """What one merge made.

    Attributes:
        indices: The candidates' indices.
        soup: What the merge returned.
        splits: The data splits that it evaluated on.
        touched: Which of its inputs it changed, if any.
    """

    indices: tuple[int, ...]
    soup: Soup
    splits: frozenset[str]
    touched: str


class MergeCase(PluginCase[MergeStrategy]):
    """A merge strategy under test."""

    kind: Kind = "merge"

    @property
    def trained(self) -> TrainedSegment:
        """The replicas that are merged."""
        return trained_segment()

    def merge(
        self, states: Sequence[State] | None = None, scores: Sequence[Score] | None = None,
        indices: Sequence[int] = (0, 1, 2), merge: MergeStrategy | None = None, parent: State | None = None,
    ) -> Merged:  # fmt: skip
        """Merge as a run does: by default the trained replicas, by a new instance, and no more than it takes.

        Raises:
            RunError: the soup breaks the contract.
        """
        trained, merge, splits = self.trained, merge or self.make(), set[str]()
        setup = replace(trained.setup, config=replace(trained.setup.config, merge=merge))
        before = (parent or trained.parent).named()
        after = (parent or trained.parent).renamed(clones(before))
        rows = list(zip(indices, states or trained.replicas, scores or trained.scores, strict=False))
        original = ImageData.evaluation_batches

        def noting(data: ImageData, split: Any, limit: int | None = None) -> Any:
            splits.add(split)
            return original(data, split, limit)

        with tempfile.TemporaryDirectory(prefix="sparsekit-check-") as folder:
            candidates = [
                FileCandidate.write(Path(folder) / f"{index}.safetensors", index, state, score)
                for index, state, score in rows[: merge.max_replicas]
            ]
            order, files = list(candidates), [c.path.read_bytes() for c in candidates]
            with patch.object(ImageData, "evaluation_batches", noting):
                _, soup = merging.merge(setup, after, candidates, trained.stage)
            touched = difference(before, after.named())
            if candidates != order:
                touched = "the order of the candidates"
            elif files != [c.path.read_bytes() for c in candidates]:
                touched = "a candidate's file"
        return Merged(tuple(c.index for c in order), soup, frozenset(splits), touched)

    @cached_property
    def usual(self) -> Merged:
        """The merge of the trained replicas. Its error is raised once, for `soups_are_whole`; then Skipped."""
        merge = self.make()
        self.try_once("merging three trained replicas", "soups_are_whole")
        return self.merge(merge=merge)

    def try_merge(self, what: str, **given: Any) -> Merged:
        """Merge, and raise Broken that names `what` is merged where that fails; `given` as for `merge`."""
        try:
            return self.merge(**given)
        except Exception as error:
            text = str(error) if isinstance(error, RunError) else describe(error)
            raise Broken(f"{what}: {text}") from error
