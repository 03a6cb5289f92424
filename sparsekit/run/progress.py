"""A run's progress as one immutable value, and its conversion to and from checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Score, Stage
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.state import OPTIMIZER, State, cpu_state_dict, from_file, to_file
from sparsekit.models.stored import StoredTensors
from sparsekit.pruning import masks
from sparsekit.run.checkpoint import CheckpointStore, Damaged, StoredFile
from sparsekit.training.replica import ReplicaSnapshot
from sparsekit.training.setup import Setup


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come, between two steps of its main loop.

    Attributes:
        segment: Index of the current segment.
        step: Optimizer steps along the critical path up to the current segment; once it is merged, up to its end.
        parent: The model that the segment starts from; once it is merged, the soup.
        change: ‖W − W_p‖₂ / ‖W‖₂ of the segment's pruning; None before it is pruned.
        finished: Indices of the segment's replicas that finished, including those left out of the merge.
        candidates: The replicas to merge.
        tested: Test scores of the last merge's candidates, after that merge.
        snapshots: Replicas in the middle of their training, by index.
        test: Test score at the end of the previous segment.
        beginnings: Parameters and buffers as they were when a segment began, by its index, for later segments that
            rewind to it.
        ordered: Number of the checkpoint from which the ranks are training now; None with one rank.
        trained: Whether all of the segment's replicas finished, so that none needs the parent's optimizer state.
    """

    segment: int
    step: int
    parent: State
    change: float | None = None
    finished: tuple[int, ...] = ()
    candidates: tuple[FileCandidate, ...] = ()
    tested: tuple[Score, ...] = ()
    snapshots: Mapping[int, ReplicaSnapshot] = field(default_factory=dict)
    test: Score | None = None
    beginnings: Mapping[int, Tensors] = field(default_factory=dict)
    ordered: int | None = None
    trained: bool = False


def first_progress(setup: Setup) -> RunProgress:
    """The progress at the start: a fresh or pretrained model, with only the zeros of `--model.init` masked."""
    tensors = cpu_state_dict(setup.model)
    weights = {name: tensors[name] for name in setup.prunable}
    extra = dict(sorted(setup.method.extra(weights).items()))  # sorted, as they are when read from a file
    first = masks.full(weights) | setup.initial
    beside = setup.channels.masks_beside(setup.channels.kept(first)) if setup.channels else {}
    return RunProgress(0, 0, State(tensors, first, extra, target=setup.config.sparsity, beside=beside))


def with_beginning(at: RunProgress, stage: Stage) -> RunProgress:
    """The progress with what segments from this one on rewind to, before this one is pruned."""
    wanted = {segment.rewind for segment in stage.plan[stage.index :]}
    known = {**at.beginnings, stage.index: at.parent.tensors}
    return replace(at, beginnings={index: known[index] for index in known if index in wanted})


def save(checkpoints: CheckpointStore, at: RunProgress, header: dict[str, Any], alone: bool = False) -> str:
    """Commit a checkpoint, and return its manifest's name.

    Args:
        checkpoints: Where to.
        at: What it holds.
        header: Further entries of its manifest.
        alone: Whether older checkpoints go (`CheckpointStore.commit`).
    """
    alone_parent = replace(at.parent, optimizer={})
    files = {"parent": checkpoints.store_once("parent", at.parent, lambda: to_file(alone_parent))}
    if at.parent.optimizer and not at.trained:
        files["optimizer"] = _in_file(checkpoints, "optimizer", at.parent, at.parent.optimizer)
    for candidate in at.candidates:
        files[f"candidate {candidate.index}"] = checkpoints.described(candidate.path)
    for index, snapshot in at.snapshots.items():
        files[f"replica {index}"] = _in_file(checkpoints, f"replica-{index}", snapshot, snapshot.tensors)
    for index, tensors in at.beginnings.items():
        stored = checkpoints.store_once(f"beginning-{index}", tensors, partial(dict, tensors))
        files[f"beginning {index}"] = stored
    return checkpoints.commit(
        header
        | {
            "segment": at.segment,
            "step": at.step,
            "progress": at.parent.progress,
            "target": at.parent.target,
            "change": at.change,
            "finished": at.finished,
            "trained": at.trained,
            "candidates": [
                [c.index, _plain(c.score), c.mask_digest, c.tested and _plain(c.tested)] for c in at.candidates
            ],
            "tested": [_plain(score) for score in at.tested],
            "underway": [[index, s.done, s.attempt, s.averaged] for index, s in at.snapshots.items()],
            "beginnings": list(at.beginnings),
            "ordered": at.ordered,
            "test": at.test and _plain(at.test),
        },
        files,
        alone,
    )


def _in_file(checkpoints: CheckpointStore, stem: str, owner: object, tensors: Mapping[str, Tensor]) -> StoredFile:
    """The file of some tensors, which may be read from one already; that is named again, or it would go."""
    if isinstance(tensors, StoredTensors):
        return checkpoints.described(tensors.path)
    return checkpoints.store_once(stem, owner, lambda: tensors)


def restore(
    checkpoints: CheckpointStore, fresh: State, segments: int, body: dict[str, Any], files: dict[str, StoredFile]
) -> RunProgress:
    """Read the progress that a checkpoint holds, and check that it fits the run.

    Args:
        checkpoints: The checkpoint folder; it has checked the files' checksums already.
        fresh: The model before its first segment. It gives the expected tensors, and the order of the masks: files do
            not keep that order, but ties between layers depend on it.
        segments: Number of segments in the plan.
        body: The manifest.
        files: The files that the manifest names.

    Raises:
        Damaged: it is not a checkpoint of this run.
    """
    try:
        return _restored(checkpoints, fresh, segments, body, files)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise Damaged(f"it does not belong to this run ({type(error).__name__}: {error})") from error


def _restored(
    checkpoints: CheckpointStore, fresh: State, segments: int, body: dict[str, Any], files: dict[str, StoredFile]
) -> RunProgress:
    stored = checkpoints.load(files["parent"])
    if "random.cpu" in stored:
        raise Damaged("it has a replica where the parent should be")
    parent = from_file(stored, _fraction(body["progress"]), _fraction(body["target"]))
    _same_tensors(parent, fresh)
    optimizer = checkpoints.path(files.get("optimizer", files["parent"]))
    prefix = OPTIMIZER if optimizer.name == files["parent"].name else ""  # as up to format 2
    parent = replace(
        parent,
        masks={name: parent.masks[name] for name in fresh.masks},
        beside={name: parent.beside[name] for name in fresh.beside},
        optimizer=StoredTensors(optimizer, prefix),
    )
    checkpoints.adopt("parent", parent, files["parent"])
    candidates = []
    for index, score, digest, tested in body["candidates"]:
        path = checkpoints.path(files[f"candidate {_count(index)}"])
        candidate = FileCandidate(path, index, _score(score), str(digest), tested and _score(tested))
        if digest != masks.digest(parent.masks) or set(candidate.names()) != set(fresh.named()):
            raise Damaged(f"candidate {index} does not fit its parent")
        candidates.append(candidate)
    snapshots = {}
    for index, done, attempt, averaged in body["underway"]:
        tensors = checkpoints.load(files[f"replica {_count(index)}"])
        snapshots[index] = ReplicaSnapshot(_count(done), _count(attempt), _count(averaged), tensors)
        _same_tensors(from_file(tensors, 0.0, 0.0), fresh)
        if tensors["random.cpu"].shape != torch.get_rng_state().shape or tensors["loss"].shape:
            raise Damaged(f"replica {index} has no valid random state")
    beginnings = {}
    for index in body.get("beginnings", []):
        file = files[f"beginning {_count(index, segments)}"]
        beginnings[index] = dict(checkpoints.load(file))
        _same_tensors(replace(fresh, tensors=beginnings[index]), fresh)
        checkpoints.adopt(f"beginning-{index}", beginnings[index], file)
    at = RunProgress(
        segment=_count(body["segment"], segments),
        step=_count(body["step"]),
        parent=parent,
        change=None if body["change"] is None else float(body["change"]),
        finished=tuple(_count(index) for index in body["finished"]),
        trained=bool(body.get("trained")),
        candidates=tuple(candidates),
        tested=tuple(_score(score) for score in body["tested"]),
        snapshots=snapshots,
        test=body["test"] and _score(body["test"]),
        beginnings=beginnings,
        ordered=None if body.get("ordered") is None else _count(body["ordered"]),
    )

    if len(candidates) > len(at.finished) or (at.segment == segments and at.test is None):
        raise Damaged("its parts do not fit one another")
    _count(body.get("metrics", 0))
    if type(body.get("seconds", 0.0)) not in (int, float):
        raise Damaged("it does not say how long the run took")
    return at


def _same_tensors(found: State, fresh: State) -> None:
    """Raise Damaged unless a state has the tensors and masks of the run's model."""
    pairs = ((found.tensors, fresh.tensors), (found.extra, fresh.extra))
    for stored, expected in (*pairs, (found.masks, fresh.masks), (found.beside, fresh.beside)):
        if {n: (t.shape, t.dtype) for n, t in stored.items()} != {n: (t.shape, t.dtype) for n, t in expected.items()}:
            raise Damaged("it holds another model")


def _score(value: list[float]) -> Score:
    score, loss = value
    return Score(float(score), float(loss))


def _count(value: object, most: float = math.inf) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Damaged(f"{value!r} is not a valid count")
    return value


def _fraction(value: object) -> float:
    if type(value) not in (int, float) or not 0.0 <= value <= 1.0 + 1e-6:  # type: ignore[operator]
        raise Damaged(f"{value!r} is not a fraction from 0 to 1")
    return float(value)  # type: ignore[arg-type]


def _plain(score: Score) -> list[float]:
    return [score.value, score.loss]
