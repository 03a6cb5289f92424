"""Replicas one after another, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

from sparsekit.api import Score, Stage
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.state import State
from sparsekit.planning.replicas import Replica
from sparsekit.run.context import RunContext
from sparsekit.run.progress import RunProgress
from sparsekit.training.replica import NonFinite, Progress, Training, train
from sparsekit.training.setup import Setup

ATTEMPTS = 2


def train_replicas(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
    """Train replicas of one segment; those that stay finite become candidates."""
    for replica in replicas:
        at = settle(context, stage, replica, train_replica(context, stage, replica, at), at)
        context.keep(at)
        context.signals.stop()
    return at


def train_replica(context: RunContext, stage: Stage, replica: Replica, at: RunProgress) -> tuple[State, Score] | None:
    """Train one replica and score it on the held-out split; with a fault once more with another seed, then None."""
    schedule, underway = context.setup.method.learning_rate(stage), at.underway.get(replica.index)

    def pause(training: Training) -> None:
        context.pause(lambda: replace(at, underway={**at.underway, replica.index: training.snapshot()}), training.done)

    for attempt in range(underway.attempt if underway else 0, ATTEMPTS):
        training = Training(context.setup, at.parent, stage, replica, schedule, attempt)
        if underway and underway.attempt == attempt:
            training.restore(underway)
        try:
            with context.signals.deferred():
                state = train(training, partial(report, context, stage, replica, at), pause)
            trained = scored(context.setup, state)
            context.setup.team.agree(True)
            return trained
        except NonFinite as fault:
            context.setup.team.agree(False)
            log_fault(context, stage, training, fault, at)
    return None


def settle(
    context: RunContext, stage: Stage, replica: Replica, trained: tuple[State, Score] | None, at: RunProgress
) -> RunProgress:
    """Count a replica as over; a trained one leaves for its file and becomes a candidate.

    Those of the last merge are scored on the test split too, for the summary alone: no merge sees it.
    """
    underway = {index: other for index, other in at.underway.items() if index != replica.index}
    at = replace(at, underway=underway, finished=(*at.finished, replica.index))
    if trained is None:
        return at
    (state, score), setup = trained, context.setup
    values, tested = {"held_out.accuracy": score.accuracy, "held_out.loss": score.loss}, None
    if not any(later.epochs > 0 for later in stage.plan[stage.index + 1 :]):
        tested = setup.score(state, "test")
        values |= {"test.accuracy": tested.accuracy, "test.loss": tested.loss}
    path = context.checkpoints.new(f"segment-{stage.index:03}-{replica.index}")
    candidate = FileCandidate.write(path, replica.index, state, score, tested)
    step = at.step + setup.plan[stage.index].steps
    context.tracker.log("candidate", values, step=step, segment=stage.index, replica=replica.index)
    return replace(at, candidates=(*at.candidates, candidate))


def scored(setup: Setup, state: State) -> tuple[State, Score]:
    """A trained replica with its held-out score; raises Fault where that is not finite.

    Its BatchNorm is measured again as a soup's is. With running means over augmented batches, which lag behind young
    weights, a replica alone would look worse than it is, and averaging better.
    """
    state = setup.recalibrated(state)
    score = setup.score(state, "held_out")
    if not isfinite(score.loss):
        raise NonFinite(f"its held-out loss is {score.loss}")
    return state, score


def report(context: RunContext, stage: Stage, replica: Replica, at: RunProgress, now: Progress) -> None:
    """One line of a replica's training log."""
    values = {"loss": now.loss, "lr": now.lr}
    context.tracker.log("train", values, step=at.step + now.done, segment=stage.index, replica=replica.index)
    context.display.progress(replica.index, now.done, now.steps, now.loss)


def log_fault(context: RunContext, stage: Stage, training: Training, fault: NonFinite, at: RunProgress) -> None:
    """Say that a replica went wrong, and what becomes of it."""
    replica, attempt = training.replica, training.attempt
    outcome = "tried again with another seed" if attempt + 1 < ATTEMPTS else "left out of the soup"
    context.display.warn(f"segment {stage.index + 1}, replica {replica.index + 1}: {fault}; {outcome}")
    values = {"reason": str(fault), "outcome": outcome, "attempt": attempt}
    context.tracker.log("fault", values, step=at.step + training.done, segment=stage.index, replica=replica.index)
