"""A checkpoint whose checksums are right is read for the run that it is of, and for no other."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_files import newest
from tiny import tiny_config

from sparsekit.api import Score
from sparsekit.config.options import ModelConfig
from sparsekit.merging.merge import FileCandidate
from sparsekit.models.state import State
from sparsekit.run import loop as scheduler
from sparsekit.run import progress as places
from sparsekit.run.checkpoint import Damaged, Keeper
from sparsekit.run.progress import Place
from sparsekit.training.setup import Setup, prepare


@functools.cache
def ready(channels: int = 4) -> Setup:
    return prepare(tiny_config(model=ModelConfig(kwargs={"layers": [1, 1, 0, 0], "channels": [channels, 8, 8, 8]})))


def half_pruned(parent: State) -> State:
    masks = {name: torch.arange(mask.numel()).view(mask.shape) % 2 == 0 for name, mask in parent.masks.items()}
    weights = {name: weight * masks[name] for name, weight in parent.weights.items()}
    return replace(parent.with_weights(weights), masks=masks)


def restored(folder: Path, place: Place, setup: Setup) -> Place:
    """The place, committed by one keeper and read back by another."""
    places.save(Keeper(folder), place, {"metrics": 0, "seconds": 0.0})
    read = functools.partial(places.restore, Keeper(folder), scheduler.start(setup).parent, len(setup.stages))
    found = newest(Keeper(folder), pytest.fail)
    assert found is not None
    return read(*found)


def with_candidate(folder: Path, parent: State, of: State) -> Place:
    folder.mkdir(exist_ok=True)
    candidate = FileCandidate.write(folder / "segment-001-0.safetensors", 0, of, Score(0.5, 1.0))
    return Place(1, 24, parent, 0.25, (0,), (candidate,))


def test_its_own_is_read_back(tmp_path: Path) -> None:
    parent = half_pruned(scheduler.start(ready()).parent)
    place = restored(tmp_path, with_candidate(tmp_path, parent, parent), ready())
    assert all(torch.equal(place.parent.masks[name], mask) for name, mask in parent.masks.items())
    assert [candidate.index for candidate in place.candidates] == [0]


def test_another_models_is_refused(tmp_path: Path) -> None:
    theirs = scheduler.start(ready(channels=8))
    with pytest.raises(Damaged, match="another model"):
        restored(tmp_path, theirs, ready())


def test_a_candidate_under_another_mask_is_refused(tmp_path: Path) -> None:
    dense = scheduler.start(ready()).parent
    with pytest.raises(Damaged, match="candidate 0 is none of its parent's"):
        restored(tmp_path, with_candidate(tmp_path, half_pruned(dense), dense), ready())


def test_more_candidates_than_replicas_that_are_over_are_refused(tmp_path: Path) -> None:
    parent = scheduler.start(ready()).parent
    place = replace(with_candidate(tmp_path, parent, parent), finished=())
    with pytest.raises(Damaged, match="do not fit one another"):
        restored(tmp_path, place, ready())


def test_an_end_without_a_test_score_is_refused(tmp_path: Path) -> None:
    setup = ready()
    with pytest.raises(Damaged, match="do not fit one another"):
        restored(tmp_path, Place(len(setup.stages), 24, scheduler.start(setup).parent), setup)
