"""Replicas one after another, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

from sparsekit.api import Score, Stage
from sparsekit.merging import merge as merging
from sparsekit.merging.merge import FileCandidate
from sparsekit.models.state import State
from sparsekit.planning.replicas import Replica
from sparsekit.run.context import Job
from sparsekit.run.progress import Place
from sparsekit.training.replica import Fault, Progress, Training, train
from sparsekit.training.setup import Setup

ATTEMPTS = 2


def train_replicas(job: Job, stage: Stage, replicas: Sequence[Replica], at: Place) -> Place:
    """Train replicas of one segment; those that stay finite become candidates."""
    for replica in replicas:
        at = settle(job, stage, replica, train_replica(job, stage, replica, at), at)
        job.keep(at)
        job.signals.stop()
    return at


def train_replica(job: Job, stage: Stage, replica: Replica, at: Place) -> tuple[State, Score] | None:
    """Train one replica and score it on the held-out split; with a fault once more with another seed, then None."""
    schedule, underway = job.setup.method.learning_rate(stage), at.underway.get(replica.index)

    def pause(training: Training) -> None:
        job.pause(lambda: replace(at, underway={**at.underway, replica.index: training.snapshot()}), training.done)

    for attempt in range(underway.attempt if underway else 0, ATTEMPTS):
        training = Training(job.setup, at.parent, stage, replica, schedule, attempt)
        if underway and underway.attempt == attempt:
            training.restore(underway)
        try:
            with job.signals.deferred():
                state = train(training, partial(report, job, stage, replica, at), pause)
            trained = scored(job.setup, state)
            job.setup.team.agree(True)
            return trained
        except Fault as fault:
            job.setup.team.agree(False)
            log_fault(job, stage, training, fault, at)
    return None


def settle(job: Job, stage: Stage, replica: Replica, trained: tuple[State, Score] | None, at: Place) -> Place:
    """Count a replica as over; a trained one leaves for its file and becomes a candidate.

    Those of the last merge are scored on the test split too, for the summary alone: no merge sees it.
    """
    underway = {index: other for index, other in at.underway.items() if index != replica.index}
    at = replace(at, underway=underway, finished=(*at.finished, replica.index))
    if trained is None:
        return at
    (state, score), setup = trained, job.setup
    values, tested = {"held_out.accuracy": score.accuracy, "held_out.loss": score.loss}, None
    if not any(later.epochs > 0 for later in stage.plan[stage.index + 1 :]):
        setup.install(state)
        tested = setup.score("test")
        values |= {"test.accuracy": tested.accuracy, "test.loss": tested.loss}
    path = job.keeper.new(f"segment-{stage.index:03}-{replica.index}")
    candidate = FileCandidate.write(path, replica.index, state, score, tested)
    step = at.step + setup.steps[stage.index]
    job.tracker.log("candidate", values, step=step, segment=stage.index, replica=replica.index)
    return replace(at, candidates=(*at.candidates, candidate))


def scored(setup: Setup, state: State) -> tuple[State, Score]:
    """A trained replica with its held-out score; raises Fault where that is not finite.

    Its BatchNorm is measured again as a soup's is. With running means over augmented batches, which lag behind young
    weights, a replica alone would look worse than it is, and averaging better.
    """
    state = merging.recalibrated(setup, state)
    setup.install(state)
    score = setup.score("held_out")
    if not isfinite(score.loss):
        raise Fault(f"its held-out loss is {score.loss}")
    return state, score


def report(job: Job, stage: Stage, replica: Replica, at: Place, now: Progress) -> None:
    """One line of a replica's training log."""
    values = {"loss": now.loss, "lr": now.lr}
    job.tracker.log("train", values, step=at.step + now.done, segment=stage.index, replica=replica.index)
    job.display.progress(replica.index, now.done, now.steps, now.loss)


def log_fault(job: Job, stage: Stage, training: Training, fault: Fault, at: Place) -> None:
    """Say that a replica went wrong, and what becomes of it."""
    replica, attempt = training.replica, training.attempt
    outcome = "tried again with another seed" if attempt + 1 < ATTEMPTS else "left out of the soup"
    job.display.warn(f"segment {stage.index + 1}, replica {replica.index + 1}: {fault}; {outcome}")
    values = {"reason": str(fault), "outcome": outcome, "attempt": attempt}
    job.tracker.log("fault", values, step=at.step + training.done, segment=stage.index, replica=replica.index)
