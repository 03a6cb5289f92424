"""How far a run has come: one immutable value that is passed along the straight path and saved in checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError

from sparsekit import masks
from sparsekit.api import Score
from sparsekit.checkpoint import Damaged, Keeper, StoredFile
from sparsekit.merging import FileCandidate
from sparsekit.states import State, from_file, to_file
from sparsekit.training import Underway


@dataclass(frozen=True)
class Place:
    """A run between two of its actions.

    Attributes:
        segment: Index of the segment that is under way or comes next.
        step: Optimizer steps along the critical path before it, or with it once it is merged.
        parent: The one model.
        change: The pruning's relative change; None while the segment's pruning is still to come.
        finished: Replicas of the segment that are over, those left out too.
        candidates: Those that are to be merged.
        tested: Their test scores, in the last merge.
        underway: The replica that a checkpoint cut in two.
        test: Test score at the end of the last segment.
    """

    segment: int
    step: int
    parent: State
    change: float | None = None
    finished: int = 0
    candidates: tuple[FileCandidate, ...] = ()
    tested: tuple[Score, ...] = ()
    underway: Underway | None = None
    test: Score | None = None


def save(keeper: Keeper, place: Place, header: dict[str, Any]) -> None:
    """Commit a checkpoint of this place; `header` is what else its reader needs to know."""
    underway = place.underway
    files = {"parent": keeper.store_once(place.parent, lambda: to_file(place.parent))}
    for candidate in place.candidates:
        files[f"candidate {candidate.index}"] = keeper.described(candidate.path)
    if underway:
        files["replica"] = keeper.store("replica", underway.tensors)
    keeper.commit(
        header
        | {
            "segment": place.segment,
            "step": place.step,
            "progress": place.parent.progress,
            "target": place.parent.target,
            "change": place.change,
            "finished": place.finished,
            "candidates": [[c.index, c.score.accuracy, c.score.loss, c.mask_digest] for c in place.candidates],
            "tested": [[score.accuracy, score.loss] for score in place.tested],
            "underway": underway and [underway.done, underway.attempt, underway.averaged],
            "test": place.test and [place.test.accuracy, place.test.loss],
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
    parent = from_file(keeper.load(files["parent"]), _fraction(body["progress"]), _fraction(body["target"]))
    _same_tensors(parent, fresh)
    parent = replace(parent, masks={name: parent.masks[name] for name in fresh.masks})
    candidates = []
    for index, accuracy, loss, digest in body["candidates"]:
        path = keeper.path(files[f"candidate {_count(index)}"])
        candidate = FileCandidate(path, index, Score(_fraction(accuracy), float(loss)), str(digest))
        if digest != masks.digest(parent.masks) or set(candidate.names()) != set(fresh.named()):
            raise Damaged(f"candidate {index} is none of its parent's")
        candidates.append(candidate)
    underway = None
    if body["underway"]:
        done, attempt, averaged = body["underway"]
        underway = Underway(_count(done), _count(attempt), _count(averaged), keeper.load(files["replica"]))
        _same_tensors(from_file(underway.tensors, 0.0, 0.0), fresh)
        if underway.tensors["random.cpu"].shape != torch.get_rng_state().shape or underway.tensors["loss"].shape:
            raise Damaged("the replica's random state is none")
    place = Place(
        segment=_count(body["segment"], segments),
        step=_count(body["step"]),
        parent=parent,
        change=None if body["change"] is None else float(body["change"]),
        finished=_count(body["finished"]),
        candidates=tuple(candidates),
        tested=tuple(Score(_fraction(accuracy), float(loss)) for accuracy, loss in body["tested"]),
        underway=underway,
        test=body["test"] and Score(_fraction(body["test"][0]), float(body["test"][1])),
    )
    if len(candidates) > place.finished or (place.segment == segments and place.test is None):
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


def _count(value: object, most: float = math.inf) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Damaged(f"{value!r} is no count")
    return value


def _fraction(value: object) -> float:
    if type(value) not in (int, float) or not 0.0 <= value <= 1.0 + 1e-6:  # type: ignore[operator]
        raise Damaged(f"{value!r} is no fraction")
    return float(value)  # type: ignore[arg-type]
