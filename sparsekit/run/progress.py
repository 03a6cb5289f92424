"""How far a run has come: one immutable value that is passed along the straight path and saved in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError

from sparsekit._types import Tensors
from sparsekit.api import Score
from sparsekit.merging.merge import FileCandidate
from sparsekit.models.state import State, from_file, to_file
from sparsekit.pruning import masks
from sparsekit.run.checkpoint import Damaged, Keeper, StoredFile
from sparsekit.training.replica import Underway


@dataclass(frozen=True)
class Place:
    """A run between two of its actions.

    Attributes:
        segment: Index of the segment that is under way or comes next.
        step: Optimizer steps along the critical path before it, or with it once it is merged.
        parent: The one model.
        change: The pruning's relative change; None while the segment's pruning is still to come.
        finished: Indices of the segment's replicas that are over, those left out too.
        candidates: Those that are to be merged, by index.
        tested: Test scores of the last merge's candidates, once it is over.
        underway: The replicas that a checkpoint cut in two, by index.
        test: Test score at the end of the last segment.
    """

    segment: int
    step: int
    parent: State
    change: float | None = None
    finished: tuple[int, ...] = ()
    candidates: tuple[FileCandidate, ...] = ()
    tested: tuple[Score, ...] = ()
    underway: Mapping[int, Underway] = field(default_factory=dict)
    test: Score | None = None


def save(keeper: Keeper, place: Place, header: dict[str, Any]) -> str:
    """Commit a checkpoint of this place, and return its name; `header` is what else its reader needs to know."""
    files = {"parent": keeper.store_once("parent", place.parent, lambda: to_file(place.parent))}
    for candidate in place.candidates:
        files[f"candidate {candidate.index}"] = keeper.described(candidate.path)
    for index, underway in place.underway.items():
        files[f"replica {index}"] = keeper.store_once(f"replica-{index}", underway, partial(_tensors, underway))
    return keeper.commit(
        header
        | {
            "segment": place.segment,
            "step": place.step,
            "progress": place.parent.progress,
            "target": place.parent.target,
            "change": place.change,
            "finished": place.finished,
            "candidates": [
                [c.index, _plain(c.score), c.mask_digest, c.tested and _plain(c.tested)] for c in place.candidates
            ],
            "tested": [_plain(score) for score in place.tested],
            "underway": [[index, u.done, u.attempt, u.averaged] for index, u in place.underway.items()],
            "test": place.test and _plain(place.test),
        },
        files,
    )


def restore(keeper: Keeper, fresh: State, segments: int, body: dict[str, Any], files: dict[str, StoredFile]) -> Place:
    """The place that a checkpoint holds. Its files were checked when it was chosen; here they must suit the run.

    Args:
        keeper: The checkpoint folder.
        fresh: The model before its first segment: what tensors there are, and the order of the masks, which files do
            not keep and ties between layers depend on.
        segments: How many the plan has.
        body: The manifest.
        files: The files that it names.

    Raises:
        Damaged: it is no checkpoint of this run.
    """
    try:
        return _restored(keeper, fresh, segments, body, files)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise Damaged(f"it is none of this run ({type(error).__name__}: {error})") from error


def _restored(keeper: Keeper, fresh: State, segments: int, body: dict[str, Any], files: dict[str, StoredFile]) -> Place:
    stored = keeper.load(files["parent"])
    if "random.cpu" in stored:
        raise Damaged("a replica stands in its parent's place")
    parent = from_file(stored, _fraction(body["progress"]), _fraction(body["target"]))
    _same_tensors(parent, fresh)
    parent = replace(parent, masks={name: parent.masks[name] for name in fresh.masks})
    keeper.adopt("parent", parent, files["parent"])
    candidates = []
    for index, score, digest, tested in body["candidates"]:
        path = keeper.path(files[f"candidate {_count(index)}"])
        candidate = FileCandidate(path, index, _score(score), str(digest), tested and _score(tested))
        if digest != masks.digest(parent.masks) or set(candidate.names()) != set(fresh.named()):
            raise Damaged(f"candidate {index} is none of its parent's")
        candidates.append(candidate)
    underway = {}
    for index, done, attempt, averaged in body["underway"]:
        tensors = keeper.load(files[f"replica {_count(index)}"])
        underway[index] = Underway(_count(done), _count(attempt), _count(averaged), tensors)
        _same_tensors(from_file(tensors, 0.0, 0.0), fresh)
        if tensors["random.cpu"].shape != torch.get_rng_state().shape or tensors["loss"].shape:
            raise Damaged(f"the random state of replica {index} is none")
    place = Place(
        segment=_count(body["segment"], segments),
        step=_count(body["step"]),
        parent=parent,
        change=None if body["change"] is None else float(body["change"]),
        finished=tuple(_count(index) for index in body["finished"]),
        candidates=tuple(candidates),
        tested=tuple(_score(score) for score in body["tested"]),
        underway=underway,
        test=body["test"] and _score(body["test"]),
    )

    if len(candidates) > len(place.finished) or (place.segment == segments and place.test is None):
        raise Damaged("its parts do not fit one another")
    _count(body.get("metrics", 0))
    if type(body.get("seconds", 0.0)) not in (int, float):
        raise Damaged("it does not say how long the run took")
    return place


def _same_tensors(found: State, fresh: State) -> None:
    """Raise Damaged unless a state has the tensors and masks of the run's model."""
    pairs = ((found.tensors, fresh.tensors), (found.masks, fresh.masks), (found.extra, fresh.extra))
    for mine, theirs in pairs:
        if {n: (t.shape, t.dtype) for n, t in mine.items()} != {n: (t.shape, t.dtype) for n, t in theirs.items()}:
            raise Damaged("it holds another model")


def _score(value: list[float]) -> Score:
    accuracy, loss = value
    return Score(_fraction(accuracy), float(loss))


def _count(value: object, most: float = math.inf) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Damaged(f"{value!r} is no count")
    return value


def _fraction(value: object) -> float:
    if type(value) not in (int, float) or not 0.0 <= value <= 1.0 + 1e-6:  # type: ignore[operator]
        raise Damaged(f"{value!r} is no fraction")
    return float(value)  # type: ignore[arg-type]


def _tensors(underway: Underway) -> Tensors:
    return underway.tensors


def _plain(score: Score) -> list[float]:
    return [score.accuracy, score.loss]
