"""How far a run has come: one immutable value that is passed along the straight path and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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


def restore(keeper: Keeper, body: dict[str, Any], files: dict[str, StoredFile], prunable: Sequence[str]) -> Place:
    """The place that a checkpoint holds; its files were checked when it was chosen.

    `prunable` is the order of the masks, which files do not keep and ties between layers depend on.
    """
    parent = from_file(keeper.load(files["parent"]), body["progress"], body["target"])
    parent = replace(parent, masks={name: parent.masks[name] for name in prunable})
    candidates = tuple(
        FileCandidate(keeper.path(files[f"candidate {index}"]), index, Score(accuracy, loss), digest)
        for index, accuracy, loss, digest in body["candidates"]
    )
    underway = None
    if body["underway"]:
        done, attempt, averaged = body["underway"]
        underway = Underway(done, attempt, averaged, keeper.load(files["replica"]))
    return Place(
        segment=body["segment"],
        step=body["step"],
        parent=parent,
        change=body["change"],
        finished=body["finished"],
        candidates=candidates,
        tested=tuple(Score(*score) for score in body["tested"]),
        underway=underway,
        test=body["test"] and Score(*body["test"]),
    )
