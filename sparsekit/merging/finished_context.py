"""What a merge strategy gets for merging finished models: scores, losses and Fisher information, if there is data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from sparsekit._types import Tensors
from sparsekit.api import Candidate, MergeStep, Score
from sparsekit.errors import UserError
from sparsekit.merging.average import average
from sparsekit.merging.candidates import read_tensors
from sparsekit.models.saved import Lazy, SavedModel
from sparsekit.models.state import State
from sparsekit.seeds import derive
from sparsekit.training import probes
from sparsekit.training.setup import Setup


class SavedCandidate(Candidate):
    """A finished model as a merge candidate; its held-out score is measured when it is first used."""

    def __init__(self, index: int, source: SavedModel, context: FinishedMergeContext) -> None:
        self.index, self.source, self.context = index, source, context

    @property
    def score(self) -> Score:  # type: ignore[override]
        """The model's held-out score, without recalibration; raises UserError without data."""
        return self.context.score_of(self.source)

    def names(self) -> Sequence[str]:
        return self.source.names()

    def read(self, name: str) -> torch.Tensor:
        return self.source.read(name)


class FinishedMergeContext:
    """Scores and gradients for a merge of finished models. Whatever needs data raises UserError without it.

    Args:
        setup: The model and the data; None without data.
        union: Masks of the weights that any of the models keeps, True keeps.
        name: The name of the merge strategy, as given by `--merge`.
        parent: The model given by `--parent`.
    """

    def __init__(self, setup: Setup | None, union: Tensors, name: str, parent: SavedModel | None) -> None:
        self.setup, self.masks, self.name, self.parent = setup, union, name, parent
        self._scores: dict[Path, Score] = {}

    @property
    def with_data(self) -> Setup:
        """The setup; raises UserError without data."""
        if self.setup is None:
            raise UserError(f"--merge {self.name} looks at images; give --data.name and what else it needs")
        return self.setup

    def state(self, tensors: Tensors, masks: Tensors | None = None) -> State:
        """A state of the tensors and masks; by default the union of the models' masks."""
        masks = self.masks if masks is None else masks
        return State(tensors, {name: masks[name] for name in self.with_data.prunable}, progress=1.0)

    def score_of(self, source: SavedModel) -> Score:
        """A model's held-out score with its own BatchNorm statistics, measured once."""
        if source.path not in self._scores:
            self._scores[source.path] = self._score(source.tensors(), recalibrate=False)
        return self._scores[source.path]

    def step(self, names: Sequence[str], seed: int) -> MergeStep:
        """The `MergeStep` for the merge strategy; `names` are the tensors that `average` averages."""
        return MergeStep(
            average=lambda some, coefficients: average(some, coefficients, names),
            score=partial(self._score, recalibrate=True),
            loss=lambda named: probes.held_out_loss(self.with_data, self.state(dict(named)), named),
            fisher=lambda candidate, images=256: probes.fisher(
                self.with_data, self.state(read_tensors(candidate)), images
            ),
            parent=Lazy(self.parent) if self.parent else _NoParent(self.name),
            generator=torch.Generator().manual_seed(derive(seed, "merge", 0)),
        )

    def _score(self, tensors: Tensors, recalibrate: bool) -> Score:
        setup, state = self.with_data, self.state(tensors)
        return setup.score(setup.recalibrated(state) if recalibrate else state, "held_out")


class _NoParent(Mapping[str, torch.Tensor]):
    """Stands in for the parent without `--parent`: every access raises UserError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, key: str) -> torch.Tensor:
        raise self._error()

    def __iter__(self) -> Iterator[str]:
        raise self._error()

    def __len__(self) -> int:
        raise self._error()

    def _error(self) -> UserError:
        return UserError(f"--merge {self.name} compares with what the models were trained from; give it as --parent")
