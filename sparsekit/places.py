"""How far a run has come: one immutable value that is passed along the straight path and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sparsekit._types import Tensors
from sparsekit.api import Score
from sparsekit.checkpoint import Keeper, StoredFile
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


def restore(keeper: Keeper, body: dict[str, Any], files: dict[str, StoredFile], prunable: Sequence[str]) -> Place:
    """The place that a checkpoint holds; its files were checked when it was chosen.

    `prunable` is the order of the masks, which files do not keep and ties between layers depend on.
    """
    parent = from_file(keeper.load(files["parent"]), body["progress"], body["target"])
    parent = replace(parent, masks={name: parent.masks[name] for name in prunable})
    keeper.adopt("parent", parent, files["parent"])
    candidates = tuple(
        FileCandidate(keeper.path(files[f"candidate {index}"]), index, Score(*score), digest, tested and Score(*tested))
        for index, score, digest, tested in body["candidates"]
    )
    underway = {
        index: Underway(done, attempt, averaged, keeper.load(files[f"replica {index}"]))
        for index, done, attempt, averaged in body["underway"]
    }
    return Place(
        segment=body["segment"],
        step=body["step"],
        parent=parent,
        change=body["change"],
        finished=tuple(body["finished"]),
        candidates=candidates,
        tested=tuple(Score(*score) for score in body["tested"]),
        underway=underway,
        test=body["test"] and Score(*body["test"]),
    )


def _tensors(underway: Underway) -> Tensors:
    return underway.tensors


def _plain(score: Score) -> list[float]:
    return [score.accuracy, score.loss]
