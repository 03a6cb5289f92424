"""A merge strategy under test: merges of really trained replicas, and of variations of them."""

from __future__ import annotations

import hashlib
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
from sparsekit.testing.compare import clones, difference, process_settings
from sparsekit.testing.renamed import NAMES, renamed_setup, renamed_state, shorter
from sparsekit.testing.rules import Broken, Skipped, describe, need
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
    parent = replace(at.parent, optimizer={})  # it lay in a file of the run, and no merge sees it
    return TrainedSegment(setup, parent, segment.stage, replicas, tuple(c.score for c in at.candidates))


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
        name: str = "",
    ) -> Merged:  # fmt: skip
        """Merge as a run does: by default the trained replicas, by a new instance, and no more than it takes.

        The network is called `name` inside another, if that is given; the soup has the names of the network itself.

        Raises:
            RunError: the soup breaks the contract.
        """
        trained, merge, splits = self.trained, merge or self.make(), set[str]()
        setup = replace(trained.setup, config=replace(trained.setup.config, merge=merge))
        parent, states = parent or trained.parent, states or trained.replicas
        if name:
            setup, parent = renamed_setup(setup, name), renamed_state(parent, name)
            states = [renamed_state(state, name) for state in states]
        before = parent.named()
        after = parent.renamed(clones(before))
        rows = list(zip(indices, states, scores or trained.scores, strict=False))
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
            with patch.object(ImageData, "evaluation_batches", noting), process_settings() as changed:
                _, soup = merging.merge(setup, after, candidates, trained.stage)
            touched = difference(before, after.named())
            if candidates != order:
                touched = "the order of the candidates"
            elif files != [c.path.read_bytes() for c in candidates]:
                touched = "a candidate's file"
            elif changed:
                touched = f"{', '.join(changed)} for the whole process"
        if name and isinstance(soup, Soup):
            soup = replace(soup, tensors=shorter(soup.tensors, name))
        return Merged(tuple(c.index for c in order), soup, frozenset(splits), touched)

    def altered(self, **members: Any) -> MergeStrategy:
        """An instance of a subclass with these members."""
        made: MergeStrategy = type(self.cls.__name__, (self.cls,), members)(**self.options)
        return made

    def digest(self) -> str:
        """A digest of what the class makes of the trained replicas, under each name of the network."""
        found = hashlib.sha256()
        for network in NAMES:
            soup = self.merge(name=network).soup
            found.update(repr((soup.coefficients, soup.ingredients)).encode())
            for name in sorted(soup.tensors):
                found.update(name.encode() + soup.tensors[name].numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def usual(self) -> Merged:
        """The merge of the trained replicas. Its error is raised once, for `soups_are_whole`; then Skipped."""
        merge = self.make()
        self.try_once("merging three trained replicas", "soups_are_whole")
        return self.merge(merge=merge)

    def probe(self, instance: MergeStrategy) -> None:
        start, decay = instance.average_from, instance.average_decay
        need(start is None or 0.0 <= start < 1.0, f"average_from is {start!r}")
        need(0.0 <= decay <= 1.0, f"average_decay is {decay!r}")
        self.merge(merge=instance)

    def try_merge(self, what: str, **given: Any) -> Merged:
        """Merge, and raise Broken that names `what` is merged where that fails; `given` as for `merge`."""
        try:
            return self.merge(**given)
        except Skipped:
            raise
        except Exception as error:
            text = str(error) if isinstance(error, RunError) else describe(error)
            raise Broken(f"{what}: {text}") from error
