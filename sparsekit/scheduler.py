"""The straight path: for each segment prune the parent, fork, train, merge, check, evaluate; checkpoints in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite

from sparsekit import diagnostics, masks, merging, places, probes, states
from sparsekit.api import Score, Stage
from sparsekit.checkpoint import Keeper
from sparsekit.display import Display
from sparsekit.errors import RunError
from sparsekit.merging import FileCandidate
from sparsekit.places import Place
from sparsekit.pruning import prune
from sparsekit.replicas import Replica, fork
from sparsekit.setup import Setup
from sparsekit.states import State
from sparsekit.stopping import StopSignals
from sparsekit.tracking import Tracker
from sparsekit.training import Fault, Progress, Training, averaged_from, train

ATTEMPTS = 2


@dataclass
class Job:
    """What a run works with: its setup, and where it reports, keeps checkpoints and hears of signals.

    Attributes:
        setup: Plan, data and model.
        tracker: Takes the rows.
        display: Shows the run.
        keeper: Takes the checkpoints.
        signals: Say when to stop.
        minutes: Time between checkpoints inside a replica.
        header: What else a checkpoint holds, asked for at each.
    """

    setup: Setup
    tracker: Tracker
    display: Display
    keeper: Keeper
    signals: StopSignals = field(default_factory=StopSignals)
    minutes: float = 5.0
    header: Callable[[], dict[str, object]] = dict
    kept: float = field(default_factory=time.monotonic)

    def keep(self, place: Place) -> None:
        """Commit a checkpoint."""
        places.save(self.keeper, place, self.header())
        self.kept = time.monotonic()


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
    """The first place: the fresh or pretrained model, nothing pruned."""
    tensors = states.capture(setup.model)
    weights = {name: tensors[name] for name in setup.prunable}
    extra = dict(sorted(setup.method.extra(weights).items()))  # in the order in which files give them back
    return Place(0, 0, State(tensors, masks.full(weights), extra, target=setup.config.sparsity))


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
    for replica in fork(job.setup.config, stage)[at.finished :]:
        trained = train_replica(job, stage, replica, at)
        at = replace(at, underway=None, finished=at.finished + 1)
        if trained is not None:
            candidate, tested = make_candidate(job, stage, replica, *trained, at)
            at = replace(at, candidates=(*at.candidates, candidate), tested=(*at.tested, *tested))
        job.keep(at)
        job.signals.stop()
    if not at.candidates:
        raise RunError(
            f"segment {stage.index + 1}: no replica stayed finite; lower --optimizer.lr or set --optimizer.clip_norm; "
            f"the last checkpoint is in {job.keeper.folder}"
        )
    return at


def train_replica(job: Job, stage: Stage, replica: Replica, at: Place) -> tuple[State, Score] | None:
    """Train one replica and score it on the held-out split; with a fault once more with another seed, then None."""
    schedule = job.setup.method.learning_rate(stage)
    for attempt in range(at.underway.attempt if at.underway else 0, ATTEMPTS):
        training = Training(job.setup, at.parent, stage, replica, schedule, attempt)
        if at.underway and at.underway.attempt == attempt:
            training.restore(at.underway)
        try:
            with job.signals.deferred():
                state = train(training, partial(_report, job, stage, replica, at), partial(_pause, job, at))
            return scored(job.setup, stage, state)
        except Fault as fault:
            outcome = "tried again with another seed" if attempt + 1 < ATTEMPTS else "left out of the soup"
            job.display.warn(f"segment {stage.index + 1}, replica {replica.index + 1}: {fault}; {outcome}")
            values = {"reason": str(fault), "outcome": outcome, "attempt": attempt}
            job.tracker.log("fault", values, step=at.step + training.done, segment=stage.index, replica=replica.index)
    return None


def scored(setup: Setup, stage: Stage, state: State) -> tuple[State, Score]:
    """A trained replica in the working model, with its held-out score; raises Fault where that is not finite."""
    if averaged_from(setup, stage) is not None:
        state = merging.recalibrated(setup, state)
    setup.install(state)
    score = setup.score("held_out")
    if not isfinite(score.loss):
        raise Fault(f"its held-out loss is {score.loss}")
    return state, score


def make_candidate(
    job: Job, stage: Stage, replica: Replica, state: State, score: Score, at: Place
) -> tuple[FileCandidate, list[Score]]:
    """Let a trained replica leave for its file.

    Those of the last merge are scored on the test split too, for the summary alone: no merge sees it.
    """
    setup = job.setup
    candidate = FileCandidate.write(
        job.keeper.folder / f"segment-{stage.index:03}-{replica.index}.safetensors", replica.index, state, score
    )
    values = {"held_out.accuracy": score.accuracy, "held_out.loss": score.loss}
    tested = []
    if not any(later.epochs > 0 for later in stage.plan[stage.index + 1 :]):
        tested.append(setup.score("test"))
        values |= {"test.accuracy": tested[0].accuracy, "test.loss": tested[0].loss}
    step = at.step + setup.steps[stage.index]
    job.tracker.log("candidate", values, step=step, segment=stage.index, replica=replica.index)
    return candidate, tested


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
    return replace(at, parent=merged, step=step, candidates=())


def evaluate(job: Job, stage: Stage, at: Place) -> Place:
    """Score the parent on the test split, and move on to the next segment."""
    job.setup.install(at.parent)
    test = job.setup.score("test")
    values = {"test.accuracy": test.accuracy, "test.loss": test.loss, "sparsity": masks.sparsity(at.parent.masks)}
    job.tracker.log("evaluate", values, step=at.step, segment=stage.index)
    return replace(at, segment=stage.index + 1, change=None, finished=0, test=test)


def _pause(job: Job, at: Place, training: Training) -> None:
    """Between two steps: keep a checkpoint where one is due or asked for, and stop where that is asked for."""
    asked = job.signals.requested is not None
    if asked or time.monotonic() - job.kept >= 60.0 * job.minutes:
        job.keep(replace(at, underway=training.snapshot()))
    if asked:
        job.signals.stop()


def _report(job: Job, stage: Stage, replica: Replica, at: Place, now: Progress) -> None:
    values = {"loss": now.loss, "lr": now.lr}
    job.tracker.log("train", values, step=at.step + now.done, segment=stage.index, replica=replica.index)
    job.display.progress(replica.index, now.done, now.steps, now.loss)
