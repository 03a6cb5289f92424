"""The straight path: for each segment prune the parent, fork, train, merge, check, evaluate."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

import torch

from sparsekit import masks, merging, probes, states
from sparsekit.api import Score, Stage
from sparsekit.display import Display
from sparsekit.errors import RunError
from sparsekit.merging import FileCandidate
from sparsekit.pruning import prune
from sparsekit.replicas import Replica, fork
from sparsekit.setup import Setup
from sparsekit.states import State
from sparsekit.tracking import Tracker
from sparsekit.training import Progress, averaged_from, train


@dataclass
class Job:
    """One run in progress: what it works with, where it writes, and how far it is along the critical path."""

    setup: Setup
    out: Path
    tracker: Tracker
    display: Display
    step: int = 0


@dataclass(frozen=True)
class Result:
    """What a run ends with: the finished state, its test score, and the last merge's candidates on the test split."""

    state: State
    test: Score
    candidates: tuple[Score, ...]


def run(job: Job) -> Result:
    """Train, prune and merge, segment by segment."""
    parent = start(job.setup)
    tested: list[Score] = []
    for stage in job.setup.stages:
        parent, stage = prune_parent(job, parent, stage)
        if stage.segment.epochs > 0:
            candidates, tested = train_replicas(job, parent, stage)
            parent = merge_candidates(job, parent, candidates, stage)
        test = evaluate(job, parent, stage)
    return Result(states.effective(job.setup.method, parent), test, tuple(tested))


def start(setup: Setup) -> State:
    """The first parent: the fresh or pretrained model, nothing pruned."""
    tensors = states.capture(setup.model)
    weights = {name: tensors[name] for name in setup.prunable}
    return State(tensors, masks.full(weights), dict(setup.method.extra(weights)), target=setup.config.sparsity)


def prune_parent(job: Job, parent: State, stage: Stage) -> tuple[State, Stage]:
    """Prune, and say so."""
    config = job.setup.config
    gradients = partial(probes.gradients, job.setup, parent, stage)
    parent, stage = prune(config.method, parent, stage, config.masks, config.seed, gradients)
    sparsity = masks.sparsity(parent.masks)
    replicas = len(fork(config, stage)) if stage.segment.epochs > 0 else 0
    values = {
        "sparsity": sparsity,
        "replicas": replicas,
        "relative_change": stage.relative_change,
        "mask": masks.digest(parent.masks),
        "layers": {name: masks.sparsity({name: mask}) for name, mask in parent.masks.items()},
    }
    job.tracker.log("segment", values, step=job.step, segment=stage.index)
    job.display.start_segment(stage.index, len(stage.plan), sparsity, replicas)
    return parent, stage


def train_replicas(job: Job, parent: State, stage: Stage) -> tuple[list[FileCandidate], list[Score]]:
    """Train every replica of the segment; those that stay finite become candidates.

    Candidates leave for their files at once. Those of the last merge are scored on the test split too, for the
    summary alone: no merge sees it.

    Raises:
        RunError: no replica stayed finite.
    """
    setup, candidates, tested = job.setup, [], []
    schedule = setup.method.learning_rate(stage)
    for replica in fork(setup.config, stage):
        state = train(setup, parent, stage, replica, schedule, partial(_report, job, stage, replica))
        finite = all(bool(torch.isfinite(t).all()) for t in state.named().values() if t.is_floating_point())
        if finite and averaged_from(setup, stage) is not None:
            state = merging.recalibrated(setup, state)
        setup.install(state)
        score = setup.score("held_out")
        if not (finite and isfinite(score.loss)):
            what = "held-out loss is" if finite else "weights are"
            job.display.warn(f"segment {stage.index + 1}, replica {replica.index + 1}: its {what} not finite; left out")
            continue
        candidate = FileCandidate.write(
            _folder(job, stage) / f"{replica.index}.safetensors", replica.index, state, score
        )
        values = {"held_out.accuracy": candidate.score.accuracy, "held_out.loss": candidate.score.loss}
        if not any(later.epochs > 0 for later in stage.plan[stage.index + 1 :]):
            tested.append(setup.score("test"))
            values |= {"test.accuracy": tested[-1].accuracy, "test.loss": tested[-1].loss}
        job.tracker.log(
            "candidate", values, step=job.step + setup.steps[stage.index], segment=stage.index, replica=replica.index
        )
        candidates.append(candidate)
    if not candidates:
        raise RunError(
            f"segment {stage.index + 1}: no replica stayed finite; lower --optimizer.lr or set --optimizer.clip_norm"
        )
    return candidates, tested


def merge_candidates(job: Job, parent: State, candidates: list[FileCandidate], stage: Stage) -> State:
    """Merge, and say what came of it."""
    job.step += job.setup.steps[stage.index]
    merged, soup = merging.merge(job.setup, parent, candidates, stage)
    shutil.rmtree(_folder(job, stage))
    job.setup.install(merged)
    held_out = job.setup.score("held_out")
    values = {
        "candidates": [c.score.accuracy for c in candidates],
        "ingredients": list(soup.ingredients),
        "coefficients": soup.coefficients and list(soup.coefficients),
        "soup": held_out.accuracy,
        "soup.loss": held_out.loss,
        "barrier": held_out.loss - sum(c.score.loss for c in candidates) / len(candidates),
    }
    job.tracker.log("merge", values, step=job.step, segment=stage.index)
    job.display.merged(held_out.accuracy, [c.score.accuracy for c in candidates], len(soup.ingredients))
    return merged


def evaluate(job: Job, parent: State, stage: Stage) -> Score:
    """Score the parent on the test split."""
    job.setup.install(parent)
    test = job.setup.score("test")
    values = {"test.accuracy": test.accuracy, "test.loss": test.loss, "sparsity": masks.sparsity(parent.masks)}
    job.tracker.log("evaluate", values, step=job.step, segment=stage.index)
    return test


def _report(job: Job, stage: Stage, replica: Replica, at: Progress) -> None:
    job.tracker.log(
        "train", {"loss": at.loss, "lr": at.lr}, step=job.step + at.done, segment=stage.index, replica=replica.index
    )
    job.display.progress(replica.index, at.done, at.steps, at.loss)


def _folder(job: Job, stage: Stage) -> Path:
    return job.out / "checkpoints" / f"segment-{stage.index}"
