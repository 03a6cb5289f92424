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
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.state import State
from sparsekit.run import progress
from sparsekit.run.checkpoint import CheckpointStore, Damaged
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.training.prepare import prepare
from sparsekit.training.setup import Setup


@functools.cache
def ready(channels: int = 4) -> Setup:
    return prepare(tiny_config(model=ModelConfig(kwargs={"layers": [1, 1, 0, 0], "channels": [channels, 8, 8, 8]})))


def half_pruned(parent: State) -> State:
    masks = {name: torch.arange(mask.numel()).view(mask.shape) % 2 == 0 for name, mask in parent.masks.items()}
    weights = {name: weight * masks[name] for name, weight in parent.weights.items()}
    return replace(parent.with_weights(weights), masks=masks)


def restored(folder: Path, at: RunProgress, setup: Setup) -> RunProgress:
    """The progress, committed by one store and read back by another."""
    progress.save(CheckpointStore(folder), at, {"metrics": 0, "seconds": 0.0})
    read = functools.partial(progress.restore, CheckpointStore(folder), first_progress(setup).parent, len(setup.plan))
    found = newest(CheckpointStore(folder), pytest.fail)
    assert found is not None
    return read(*found)


def with_candidate(folder: Path, parent: State, of: State) -> RunProgress:
    folder.mkdir(exist_ok=True)
    candidate = FileCandidate.write(folder / "segment-001-0.safetensors", 0, of, Score(0.5, 1.0))
    return RunProgress(1, 24, parent, 0.25, (0,), (candidate,))


def test_its_own_is_read_back(tmp_path: Path) -> None:
    parent = half_pruned(first_progress(ready()).parent)
    at = restored(tmp_path, with_candidate(tmp_path, parent, parent), ready())
    assert all(torch.equal(at.parent.masks[name], mask) for name, mask in parent.masks.items())
    assert [candidate.index for candidate in at.candidates] == [0]


def test_another_models_is_refused(tmp_path: Path) -> None:
    other = first_progress(ready(channels=8))
    with pytest.raises(Damaged, match="another model"):
        restored(tmp_path, other, ready())


def test_a_candidate_under_another_mask_is_refused(tmp_path: Path) -> None:
    dense = first_progress(ready()).parent
    with pytest.raises(Damaged, match="candidate 0 does not fit its parent"):
        restored(tmp_path, with_candidate(tmp_path, half_pruned(dense), dense), ready())


def test_more_candidates_than_replicas_that_are_over_are_refused(tmp_path: Path) -> None:
    parent = first_progress(ready()).parent
    at = replace(with_candidate(tmp_path, parent, parent), finished=())
    with pytest.raises(Damaged, match="do not fit one another"):
        restored(tmp_path, at, ready())


def test_an_end_without_a_test_score_is_refused(tmp_path: Path) -> None:
    setup = ready()
    with pytest.raises(Damaged, match="do not fit one another"):
        restored(tmp_path, RunProgress(len(setup.plan), 24, first_progress(setup).parent), setup)
