"""Train replicas one after another on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

from sparsekit.api import Score, Stage
from sparsekit.errors import ReadError
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.device import release_freed_memory
from sparsekit.models.state import State
from sparsekit.planning.plan import carries_optimizer
from sparsekit.planning.replicas import Replica
from sparsekit.pruning import masks
from sparsekit.run.context import RunContext
from sparsekit.run.progress import RunProgress
from sparsekit.training.graph import GraphedStep
from sparsekit.training.replica import NonFinite, Progress, Training, train
from sparsekit.training.setup import Setup

ATTEMPTS = 2
"""How often a replica is trained before it is left out of the soup."""


def train_replicas(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
    """Train replicas of one segment; those that stay finite become candidates. Commits a checkpoint after each."""
    for replica in replicas:
        at = finish_replica(context, stage, replica, train_replica(context, stage, replica, at), at)
        context.keep_beside(at)
        context.signals.stop()
    return at


def train_replica(context: RunContext, stage: Stage, replica: Replica, at: RunProgress) -> tuple[State, Score] | None:
    """Train one replica and score it on the held-out split.

    A replica that becomes non-finite is trained once more with another seed; None if that fails too.
    """
    schedule = context.setup.for_replica(replica).method.learning_rate(stage)
    snapshot = at.snapshots.get(replica.index)

    def pause(training: Training) -> None:
        context.pause(
            lambda: replace(at, snapshots={**at.snapshots, replica.index: training.snapshot()}), training.done
        )

    for attempt in range(snapshot.attempt if snapshot else 0, ATTEMPTS):
        release_freed_memory()
        training = Training(context.setup, at.parent, stage, replica, schedule, attempt)
        if snapshot and snapshot.attempt == attempt:
            training.restore(snapshot)
        try:
            with context.signals.deferred():
                state = train(training, partial(report, context, stage, replica, at), pause)
            if training.graphed:
                explain_plain_steps(context, training.graphed)
            trained = recalibrate_and_score(context.setup, state)
            context.setup.team.agree(True)
            return trained
        except NonFinite as fault:
            context.setup.team.agree(False)
            log_fault(context, stage, training, fault, at)
        except ReadError:
            context.keep(replace(at, snapshots={**at.snapshots, replica.index: training.snapshot()}))
            context.signals.stop()  # the signal may have ended the worker
            raise
    return None


def finish_replica(
    context: RunContext, stage: Stage, replica: Replica, trained: tuple[State, Score] | None, at: RunProgress
) -> RunProgress:
    """Mark a replica as finished; a trained one becomes a candidate.

    Its file is written at once, out of memory, and waited for with the checkpoint that names it.

    Candidates of the last merge are also scored on the test split, for the summary only: no merge sees that score.
    """
    snapshots = {index: other for index, other in at.snapshots.items() if index != replica.index}
    at = replace(at, snapshots=snapshots, finished=(*at.finished, replica.index))
    if trained is None:
        return at
    (state, score), setup = trained, context.setup
    name = setup.task.score_name
    values, tested = {f"held_out.{name}": score.value, "held_out.loss": score.loss}, None
    if stage.last:
        tested = setup.score(state, "test")
        values |= {f"test.{name}": tested.value, "test.loss": tested.loss}
    path = context.checkpoints.new(f"segment-{stage.index:03}-{replica.index}")
    candidate = FileCandidate(path, replica.index, score, masks.digest(state.masks), tested)
    read_again = carries_optimizer(setup.config, setup.plan, stage.index)
    candidate.save(state if read_again else replace(state, optimizer={}))
    step = at.step + setup.plan[stage.index].steps
    context.tracker.log("candidate", values, step=step, segment=stage.index, replica=replica.index)
    return replace(at, candidates=(*at.candidates, candidate))


def recalibrate_and_score(setup: Setup, state: State) -> tuple[State, Score]:
    """Recalibrate a trained replica's BatchNorm, as is done for a soup, and score it on the held-out split.

    Running means over augmented batches lag behind the weights: without recalibration a single replica would look
    worse than it is, and averaging better.

    Raises:
        NonFinite: the held-out loss is not finite.
    """
    state = setup.recalibrated(state)
    score = setup.score(state, "held_out")
    if not isfinite(score.loss):
        raise NonFinite(f"its held-out loss is {score.loss}")
    return state, score


def report(context: RunContext, stage: Stage, replica: Replica, at: RunProgress, now: Progress) -> None:
    """Log and show a replica's training loss."""
    values = {"loss": now.loss, "lr": now.lr}
    context.tracker.log("train", values, step=at.step + now.done, segment=stage.index, replica=replica.index)
    context.display.progress(replica.index, now.done, now.steps, now.loss)


def explain_plain_steps(context: RunContext, graphed: GraphedStep) -> None:
    """Say why training steps are not recorded as a CUDA graph, where that was tried in vain."""
    if graphed.obstacle:
        context.display.once(f"training steps are not recorded as CUDA graphs, {graphed.obstacle}")


def log_fault(context: RunContext, stage: Stage, training: Training, fault: NonFinite, at: RunProgress) -> None:
    """Log and warn that a replica became non-finite, and whether it is tried again."""
    replica, attempt = training.replica, training.attempt
    outcome = "tried again with another seed" if attempt + 1 < ATTEMPTS else "left out of the soup"
    context.display.warn(f"segment {stage.index + 1}, replica {replica.index + 1}: {fault}; {outcome}")
    values = {"reason": str(fault), "outcome": outcome, "attempt": attempt}
    context.tracker.log("fault", values, step=at.step + training.done, segment=stage.index, replica=replica.index)
