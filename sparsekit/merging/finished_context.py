"""What a merge strategy gets for merging finished models: scores, losses and Fisher information, if there is data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sparsekit._types import Tensors
from sparsekit.api import Candidate, MergeStep, MergeStrategy, Score
from sparsekit.errors import UserError
from sparsekit.merging.average import average
from sparsekit.merging.candidates import read_tensors
from sparsekit.models.card import class_names, class_order, normalisation, seen_by
from sparsekit.models.fill import classifiers, inside
from sparsekit.models.saved import Lazy, SavedModel
from sparsekit.models.state import State
from sparsekit.seeds import derive
from sparsekit.training import probes
from sparsekit.training.setup import Setup

_GREY_LEVEL = 1 / 255
"""Means and standard deviations that differ by less are the same: they come from other images of the same kind."""


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

    Each model is shown images that are made as its own config.json says, those without one as the setup's are.

    Args:
        setup: The model, and the data as the model that names the architecture sees it; None without data.
        union: Masks of the weights that any of the models keeps, True keeps.
        name: The name of the merge strategy, as given by `--merge`.
        parent: The model given by `--parent`.
    """

    def __init__(self, setup: Setup | None, union: Tensors, name: str, parent: SavedModel | None) -> None:
        self.setup, self.masks, self.name, self.parent = setup, union, name, parent
        self._scores: dict[Path, Score] = {}
        self._setups: dict[Path, Setup] = {}
        self.notes: list[str] = []
        self.told: dict[str, float | str] = {}

    def setup_of(self, source: SavedModel) -> Setup:
        """The setup with the data as one of the models sees it; raises UserError without data."""
        setup = self.with_data
        if not source.card:
            return setup
        if source.path not in self._setups:
            data, notes = seen_by(source, setup.data, setup.config.data)
            self.notes += [note for note in notes if note not in setup.notes]
            same = not data.inputs.differing(setup.data.inputs) and data.class_names == setup.data.class_names
            self._setups[source.path] = setup if same else replace(setup, data=data)
        return self._setups[source.path]

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
            setup = self.setup_of(source)
            self._scores[source.path] = setup.score(self.state(source.tensors()), "held_out")
        return self._scores[source.path]

    def average(self, some: Sequence[Candidate], coefficients: Sequence[float], names: Sequence[str]) -> Tensors:
        """The weighted mean, as `average` returns it; raises UserError for models of differently normalised images."""
        used = [candidate for candidate, weight in zip(some, coefficients, strict=False) if weight]
        check_normalisation([candidate.source for candidate in used if isinstance(candidate, SavedCandidate)])
        return average(some, coefficients, names)

    def step(self, strategy: MergeStrategy, names: Sequence[str], buffers: frozenset[str], seed: int) -> MergeStep:
        """The `MergeStep` for the merge strategy.

        Args:
            strategy: The merge strategy.
            names: The tensors that `average` averages.
            buffers: Those that are buffers.
            seed: Seed of merges that draw.
        """
        parent: Mapping[str, torch.Tensor] = Lazy(self.parent) if self.parent else _NoParent(self.name)

        def model(tensors: Tensors | None = None) -> nn.Module:
            given = dict(tensors or {})
            rest = {name: parent[name] for name in names if name not in given}
            return probes.network(self.with_data, self.state({**given, **rest}))

        return MergeStep(
            average=partial(self.average, names=names),
            score=self._score,
            loss=lambda named: probes.held_out_loss(self.with_data, self.state(dict(named)), named),
            fisher=lambda candidate, images=256: probes.fisher(
                self.setup_of(candidate.source) if isinstance(candidate, SavedCandidate) else self.with_data,
                self.state(read_tensors(candidate)),
                images,
            ),
            parent=parent,
            generator=torch.Generator().manual_seed(derive(seed, "merge", 0)),
            masks=self.masks,
            buffers=buffers,
            model=model,
            criterion=lambda outputs, targets: probes.criterion(self.with_data, outputs, targets),
            images=lambda split, limit=None: probes.images(self.with_data, split, limit),
            log=probes.notes("merge", strategy, self.told),
        )

    def _score(self, tensors: Tensors) -> Score:
        return self.with_data.score(self.with_data.recalibrated(self.state(tensors)), "held_out")


def check_normalisation(sources: Sequence[SavedModel]) -> None:
    """Raise UserError if models were trained on images of differing normalisation: their mean fits neither."""
    known = [(source, found) for source in sources if (found := normalisation(source))]
    for source, found in known[1:]:
        first, reference = known[0]
        if any(abs(a - b) > _GREY_LEVEL for a, b in zip(reference, found, strict=False)):
            here, there = (" ".join(f"{value:.4g}" for value in values) for values in (reference, found))
            raise UserError(
                f"{first.path} and {source.path} were trained on images of differing normalisation: mean, std {here} "
                f"against {there} in each config.json. Their mean fits neither; give models of one normalisation"
            )


def in_one_order(sources: Sequence[SavedModel], model: nn.Module | None) -> tuple[list[SavedModel], list[str]]:
    """The models with their classes in the order of the first that names them: the rows of their classifiers are moved.

    Args:
        sources: The models.
        model: A model of their architecture; None of an unknown one.

    Returns:
        The models, and lines for the user.

    Raises:
        UserError: models name other classes, or the same in another order where no classifier is known.
    """
    first = next((source for source in sources if class_names(source)), None)
    reference = first and class_names(first)
    if not first or not reference:
        return [*sources], []
    head = classifiers(model) if model else ()
    found, notes = [], list[str]()
    for source in sources:
        if (names := class_names(source) or reference) == reference:
            found.append(source)
            continue
        rows = [name for name in source.names() if inside(name, head) and source.read(name).shape[:1] == (len(names),)]
        if sorted(names) != sorted(reference) or len(set(names)) < len(names) or not rows:
            at = next(i for i, pair in enumerate(itertools.zip_longest(reference, names)) if pair[0] != pair[1])
            order = "the same classes in another order" if set(names) == set(reference) else "other classes"
            one, other = (repr(each[at]) if at < len(each) else "none" for each in (reference, names))
            raise UserError(
                f"{source.path} names {order} than {first.path}: class {at} is {other}, not {one}; give models of the "
                "same classes in the same order"
            )
        moved, mapped = class_order(source, reference, str(first.path))
        card = {**source.card, "label_names": list(reference)}
        found.append(replace(source, rows=dict.fromkeys(rows, moved) if moved else {}, card=card))
        notes += mapped
    return found, notes


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
        return UserError(
            f"--merge {self.name} asks for what the models were trained from (step.parent); give it as --parent"
        )
