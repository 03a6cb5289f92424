"""The main loop: for each segment prune the parent, fork, train, merge, check, evaluate; checkpoints in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sparsekit.api import Score
from sparsekit.errors import RunError
from sparsekit.merging import diagnostics
from sparsekit.merging.merge import merge
from sparsekit.models.state import State, in_use
from sparsekit.planning.plan import PlannedSegment
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run import progress
from sparsekit.run.context import RunContext
from sparsekit.run.progress import RunProgress
from sparsekit.training import probes


@dataclass(frozen=True)
class Result:
    """A run's result.

    Attributes:
        state: The finished model, with its effective weights.
        test: Its test score.
        candidates: Test scores of the last merge's candidates.
    """

    state: State
    test: Score
    candidates: tuple[Score, ...]


def run(context: RunContext, at: RunProgress) -> Result:
    """Prune, train and merge, segment by segment, from `at` to the end of the plan.

    A merged parent is committed once it is pruned, so that it is stored once.
    """
    for segment in context.setup.plan[at.segment :]:
        segment, at = prune_parent(context, segment, at)
        if segment.replicas:
            at = train_replicas(context, segment, at)
            at = merge_candidates(context, segment, at)
        at = evaluate(context, segment, at)
    context.keep(at)
    assert at.test is not None
    return Result(in_use(context.setup.method, at.parent), at.test, at.tested)


def prune_parent(context: RunContext, segment: PlannedSegment, at: RunProgress) -> tuple[PlannedSegment, RunProgress]:
    """Prune the parent, log and commit it, unless the progress comes from a checkpoint that was written after that."""
    config, stage = context.setup.config, segment.stage
    if at.change is None:
        at = progress.with_beginning(at, stage)
        told: dict[str, Any] = {}
        gradients = partial(probes.gradients, context.setup, at.parent, stage)
        probe = probes.probe(context.setup, at.parent, probes.notes("method", config.method, told))
        rewound = None if stage.segment.rewind is None else at.beginnings[stage.segment.rewind]
        channels = context.setup.channels
        parent, stage = prune(
            config.method, at.parent, stage, config.masks, config.seed, gradients, probe, rewound, channels
        )
        if parent.optimizer:  # into a file, out of memory, and from the candidates' files, which go
            parent = replace(parent, optimizer=context.checkpoints.put("optimizer", parent.optimizer))
        at = replace(at, parent=parent, change=stage.relative_change)
        d = config.method.learning_rate(stage).d
        values = told | {
            "sparsity": masks.sparsity(parent.masks),
            "replicas": len(segment.replicas),
            "relative_change": stage.relative_change,
            **({} if d is None else {"d": d}),
            "mask": masks.digest(parent.masks),
            "layers": {name: masks.sparsity({name: mask}) for name, mask in parent.masks.items()},
            **(channels.told(parent.masks) if channels else {}),
        }
        context.tracker.log("segment", values, step=at.step, segment=stage.index)
        context.keep_beside(at, alone=True)
    sparsity = masks.sparsity(at.parent.masks)
    context.display.emptied(masks.empty(at.parent.masks), sparsity)
    context.display.start_segment(stage.index, len(stage.plan), sparsity, len(segment.replicas))
    return replace(segment, stage=replace(stage, relative_change=at.change or 0.0)), at


def train_replicas(context: RunContext, segment: PlannedSegment, at: RunProgress) -> RunProgress:
    """Train the segment's remaining replicas; those whose loss and weights stay finite become candidates.

    Raises:
        RunError: no replica stayed finite.
    """
    remaining = [replica for replica in segment.replicas if replica.index not in at.finished]
    if remaining:
        at = context.executor(context, segment.stage, remaining, at)
        context.checkpoints.wait()
    if not at.candidates:
        data = context.setup.data
        why = data.first_not_finite("train") or data.first_not_finite("held_out")
        why = why or "lower --optimizer.lr or set --optimizer.clip_norm"
        raise RunError(
            f"segment {segment.stage.index + 1}: no replica stayed finite; {why}; the last checkpoint is in "
            f"{context.checkpoints.folder}"
        )
    at = replace(at, candidates=tuple(sorted(at.candidates, key=lambda candidate: candidate.index)), trained=True)
    if remaining:
        context.keep_beside(at, alone=True)
    return at


def merge_candidates(context: RunContext, segment: PlannedSegment, at: RunProgress) -> RunProgress:
    """Merge the candidates into the next parent, and log the merge."""
    setup, stage, candidates = context.setup, segment.stage, at.candidates
    told: dict[str, Any] = {}
    merged, soup = merge(setup, at.parent, candidates, stage, told)
    held_out = setup.score(merged, "held_out")
    scores = [candidate.score.value for candidate in candidates]
    values = told | {
        "candidates": scores,
        "ingredients": list(soup.ingredients),
        "coefficients": soup.coefficients and list(soup.coefficients),
        "soup": held_out.value,
        "soup.loss": held_out.loss,
        "barrier": held_out.loss - sum(candidate.score.loss for candidate in candidates) / len(candidates),
    }
    values |= diagnostics.of_merge(setup, at.parent, merged, candidates, held_out)
    step = at.step + segment.steps
    context.tracker.log("merge", values, step=step, segment=stage.index)
    context.display.merged(
        setup.task.score_name, held_out.value, scores, len(soup.ingredients), bool(values.get("soup.lost"))
    )
    tested = tuple(candidate.tested for candidate in candidates if candidate.tested is not None)
    # not by the masks alone: training may leave nothing of the weights that they keep
    context.display.emptied(masks.empty(in_use(setup.method, merged).weights), masks.sparsity(merged.masks))
    return replace(at, parent=merged, step=step, candidates=(), trained=False, tested=tested)


def evaluate(context: RunContext, segment: PlannedSegment, at: RunProgress) -> RunProgress:
    """Score the parent on the test split; the returned progress is at the next segment."""
    test, index = context.setup.score(at.parent, "test"), segment.stage.index
    name, sparsity = context.setup.task.score_name, masks.sparsity(at.parent.masks)
    values = {f"test.{name}": test.value, "test.loss": test.loss, "sparsity": sparsity}
    context.tracker.log("evaluate", values, step=at.step, segment=index)
    return replace(at, segment=index + 1, change=None, finished=(), test=test)
