"""The straight path: for each segment prune the parent, fork, train, merge, check, evaluate; checkpoints in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from sparsekit.api import Score, Stage
from sparsekit.errors import RunError
from sparsekit.merging import diagnostics
from sparsekit.merging import merge as merging
from sparsekit.models import state as states
from sparsekit.models.state import State
from sparsekit.planning.replicas import fork
from sparsekit.pruning import masks
from sparsekit.pruning.prune import prune
from sparsekit.run.context import Job
from sparsekit.run.progress import Place
from sparsekit.training import probes
from sparsekit.training.setup import Setup


@dataclass(frozen=True)
class Result:
    """What a run ends with: the finished state, its test score, and the last merge's candidates on the test split."""

    state: State
    test: Score
    candidates: tuple[Score, ...]


def run(job: Job, at: Place) -> Result:
    """Train, prune and merge, segment by segment, from a place on."""
    for stage in job.setup.stages[at.segment :]:
        stage, at = prune_parent(job, stage, at)
        if stage.segment.epochs > 0:
            at = train_replicas(job, stage, at)
            at = merge_candidates(job, stage, at)
        at = evaluate(job, stage, at)
        job.keep(at)
    assert at.test is not None
    return Result(states.effective(job.setup.method, at.parent), at.test, at.tested)


def start(setup: Setup) -> Place:
    """The first place: the fresh or pretrained model, nothing pruned but what `--model.init` gave as 0."""
    tensors = states.capture(setup.model)
    weights = {name: tensors[name] for name in setup.prunable}
    extra = dict(sorted(setup.method.extra(weights).items()))  # in the order in which files give them back
    return Place(0, 0, State(tensors, masks.full(weights) | setup.initial, extra, target=setup.config.sparsity))


def prune_parent(job: Job, stage: Stage, at: Place) -> tuple[Stage, Place]:
    """Prune, and say so; a parent that a checkpoint found pruned stays as it is."""
    config = job.setup.config
    replicas = len(fork(config, stage)) if stage.segment.epochs > 0 else 0
    if at.change is None:
        gradients = partial(probes.gradients, job.setup, at.parent, stage)
        parent, stage = prune(config.method, at.parent, stage, config.masks, config.seed, gradients)
        at = replace(at, parent=parent, change=stage.relative_change)
        values = {
            "sparsity": masks.sparsity(parent.masks),
            "replicas": replicas,
            "relative_change": stage.relative_change,
            "mask": masks.digest(parent.masks),
            "layers": {name: masks.sparsity({name: mask}) for name, mask in parent.masks.items()},
        }
        job.tracker.log("segment", values, step=at.step, segment=stage.index)
    job.display.start_segment(stage.index, len(stage.plan), masks.sparsity(at.parent.masks), replicas)
    return replace(stage, relative_change=at.change or 0.0), at


def train_replicas(job: Job, stage: Stage, at: Place) -> Place:
    """Train the segment's replicas that are not finished yet; those that stay finite become candidates.

    Raises:
        RunError: no replica stayed finite.
    """
    left = [replica for replica in fork(job.setup.config, stage) if replica.index not in at.finished]
    if left:
        at = job.executor(job, stage, left, at)
    if not at.candidates:
        raise RunError(
            f"segment {stage.index + 1}: no replica stayed finite; lower --optimizer.lr or set --optimizer.clip_norm; "
            f"the last checkpoint is in {job.keeper.folder}"
        )
    return replace(at, candidates=tuple(sorted(at.candidates, key=lambda candidate: candidate.index)))


def merge_candidates(job: Job, stage: Stage, at: Place) -> Place:
    """Merge, and say what came of it."""
    setup, candidates = job.setup, at.candidates
    merged, soup = merging.merge(setup, at.parent, candidates, stage)
    setup.install(merged)
    held_out = setup.score("held_out")
    values = {
        "candidates": [c.score.accuracy for c in candidates],
        "ingredients": list(soup.ingredients),
        "coefficients": soup.coefficients and list(soup.coefficients),
        "soup": held_out.accuracy,
        "soup.loss": held_out.loss,
        "barrier": held_out.loss - sum(c.score.loss for c in candidates) / len(candidates),
    }
    values |= diagnostics.of_merge(setup, at.parent, merged, candidates, held_out)
    step = at.step + setup.steps[stage.index]
    job.tracker.log("merge", values, step=step, segment=stage.index)
    lost = bool(values.get("soup.lost"))
    job.display.merged(held_out.accuracy, [c.score.accuracy for c in candidates], len(soup.ingredients), lost)
    tested = tuple(c.tested for c in candidates if c.tested is not None)
    return replace(at, parent=merged, step=step, candidates=(), tested=tested)


def evaluate(job: Job, stage: Stage, at: Place) -> Place:
    """Score the parent on the test split, and move on to the next segment."""
    job.setup.install(at.parent)
    test = job.setup.score("test")
    values = {"test.accuracy": test.accuracy, "test.loss": test.loss, "sparsity": masks.sparsity(at.parent.masks)}
    job.tracker.log("evaluate", values, step=at.step, segment=stage.index)
    return replace(at, segment=stage.index + 1, change=None, finished=(), test=test)
