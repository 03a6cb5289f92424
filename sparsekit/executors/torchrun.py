"""Replicas shared out among the ranks that torchrun started.

The leader commits a checkpoint and gives an order: this place, these replicas each. Every team reads the place, trains
its share with the executor of one process, and keeps checkpoints of its own beside the leader's. What it made comes
back as its last checkpoint, candidates' files and rows of metrics, so that the leader merges as if it had trained all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from sparsekit.api import Stage
from sparsekit.errors import RunError, first_line
from sparsekit.executors import stacked as stacking
from sparsekit.executors.sequential import ATTEMPTS
from sparsekit.planning.replicas import Replica
from sparsekit.pruning import masks
from sparsekit.run import progress
from sparsekit.run.checkpoint import OTHERS, CheckpointStore, Damaged
from sparsekit.run.context import Executor, RunContext
from sparsekit.run.metrics_log import Rows
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.run.signals import Stopped
from sparsekit.training.ranks import Ranks
from sparsekit.training.replica import NonFinite, Training, train


@dataclass
class Leader:
    """The executor of rank 0: orders, trains its own share, and collects the others'.

    Attributes:
        ranks: The ranks of the run.
        own: What trains rank 0's share.
    """

    ranks: Ranks
    own: Executor
    orders: int = 0

    def __call__(self, context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
        team, number = context.setup.team, self.orders
        self.orders += 1
        # stacked replicas round as their company does: who was together stays together
        stacked = self.own is stacking.train_replicas
        places_of = [r.index if stacked else i for i, r in enumerate(replicas)]
        shares = [
            [r.index for r, place in zip(replicas, places_of, strict=True) if place % team.count == i]
            for i in range(team.count)
        ]
        at = replace(at, ordered=context.checkpoints.number + 1)
        manifest = context.keep(at)
        order = {"manifest": manifest, "shares": shares, "mask": masks.digest(at.parent.masks)}
        self.ranks.tell(f"order/{number}", order)
        for rank in self.ranks.others:
            if wrong := self.ranks.ask(f"taken/{number}/{rank}", rank):
                raise RunError(f"rank {rank}: {wrong}")
        with _together(context, self.ranks):
            at = self.own(context, stage, [r for r in replicas if r.index in shares[0]], at)
        for rank in self.ranks.others:
            if told := self.ranks.ask(f"over/{number}/{rank}", rank):
                at = absorb(context, at, CheckpointStore(context.checkpoints.folder, prefix(rank)), told)
        at = replace(at, ordered=None)
        context.keep(at)
        return at

    def finish(self) -> None:
        """Let the others go."""
        self.ranks.tell(f"order/{self.orders}", None)


def follow(context: RunContext, ranks: Ranks) -> None:
    """What every rank but the leader does: train its share of each segment until there are no more orders."""
    number = 0
    with _together(context, ranks):
        while order := ranks.ask(f"order/{number}"):
            try:
                with context.signals.reraise_if_swallowed():
                    stage, at = _take(context, order)
            except (Damaged, RunError, OSError) as error:
                ranks.tell(f"taken/{number}/{ranks.rank}", str(error))
                raise RunError(str(error)) from error
            ranks.tell(f"taken/{number}/{ranks.rank}", "")
            ranks.tell(f"over/{number}/{ranks.rank}", _obey(context, stage, at, order["shares"]))
            number += 1
    ranks.over = True


def _obey(context: RunContext, stage: Stage, at: RunProgress, shares: list[list[int]]) -> str | None:
    """Train this rank's share; the name of the checkpoint that keeps it, of a team's first member."""
    team = context.setup.team
    share = [r for r in context.setup.plan[stage.index].replicas if r.index in shares[team.index]]
    at = replace(at, underway={r.index: at.underway[r.index] for r in share if r.index in at.underway})
    if team.heads:
        return context.keep(context.executor(context, stage, share, at)) if share else None
    assist(context, stage, share, at)
    return None


def assist(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> None:
    """Train beside the head of a team, which reports, scores and saves; as often as it does."""
    setup, schedule = context.setup, context.setup.method.learning_rate(stage)
    for replica in replicas:
        underway = at.underway.get(replica.index)
        for attempt in range(underway.attempt if underway else 0, ATTEMPTS):
            training = Training(setup, at.parent, stage, replica, schedule, attempt)
            if underway and underway.attempt == attempt:
                training.restore(underway)
            with context.signals.deferred():
                well = _goes_well(context, training)
            if setup.team.agree(well):
                break


def absorb(context: RunContext, at: RunProgress, checkpoints: CheckpointStore, manifest: str) -> RunProgress:
    """The place with what another rank made of it, by that rank's checkpoint; its rows are logged."""
    try:
        body, files = checkpoints.open(checkpoints.folder / manifest)
        theirs = progress.restore(checkpoints, at.parent, len(context.setup.plan), body, files)
    except Damaged as damage:
        raise RunError(f"checkpoint {manifest} of another rank: {damage}") from damage
    context.tracker.extend(body["rows"])
    new = [c for c in theirs.candidates if c.index not in {mine.index for mine in at.candidates}]
    finished = (*at.finished, *(index for index in theirs.finished if index not in at.finished))
    underway = {index: u for index, u in {**at.underway, **theirs.underway}.items() if index not in finished}
    return replace(at, candidates=(*at.candidates, *new), finished=finished, underway=underway)


def absorb_all(context: RunContext, at: RunProgress) -> RunProgress:
    """The progress of an interrupted run, with what its other ranks had made since the leader's order."""
    folder = context.checkpoints.folder
    names = {path.stem.partition("-")[0] + "-" for path in folder.glob(f"{OTHERS}*.json")}
    for name in sorted(names) if at.ordered else ():
        checkpoints = CheckpointStore(folder, name)
        for path in sorted(checkpoints.manifests(), reverse=True):
            try:
                body, _ = checkpoints.open(path)
            except Damaged as damage:
                context.display.warn(f"checkpoint {path.name} is damaged: {damage}")
                continue
            if body["ordered"] == at.ordered:
                at = absorb(context, at, checkpoints, path.name)
            break
    return at


def prefix(rank: int) -> str:
    """What the names of a rank's checkpoint files start with."""
    return f"{OTHERS}{rank}-"


def _take(context: RunContext, order: dict[str, Any]) -> tuple[Stage, RunProgress]:
    """The place that the leader ordered; raises RunError where its mask is not the leader's."""
    lead = CheckpointStore(context.checkpoints.folder)
    path = lead.folder / order["manifest"]
    if not path.is_file():
        raise RunError(f"{path} is not to be seen here; --out must be on a file system that all nodes share")
    body, files = lead.open(path)
    at = progress.restore(
        context.checkpoints, first_progress(context.setup).parent, len(context.setup.plan), body, files
    )
    if masks.digest(at.parent.masks) != order["mask"]:
        raise RunError("the parent's mask is not the leader's")
    assert isinstance(context.tracker, Rows)
    context.tracker.rows.clear()
    stage = replace(context.setup.plan[at.segment].stage, relative_change=at.change or 0.0)
    return stage, replace(at, candidates=(), finished=())


@contextmanager
def _together(context: RunContext, ranks: Ranks) -> Iterator[None]:
    """Where ranks train one replica together: one that leaves is met as an error of torch's in the others.

    One that a signal strikes outside of its training loop says so before it leaves, and the others stop for it too.
    """
    try:
        with context.signals.reraise_if_swallowed():
            yield
    except Stopped as stop:
        with suppress(RunError):
            ranks.tell(f"stopped/{ranks.rank}", stop.signum)
        raise
    except RuntimeError as error:
        team = context.setup.team
        text = first_line(error)
        gone = isinstance(error, dist.DistError) or re.search("onnection|peer|ocket|imed out|gloo", text)
        if team.size == 1 or isinstance(error, RunError) or not gone:
            raise
        context.signals.stop()
        for member in range(team.size):
            if signum := ranks.heard(f"stopped/{team.index * team.size + member}"):
                raise Stopped(signum) from error
        raise RunError(f"a rank of this team is gone ({text}); go on with --resume") from error


def _goes_well(context: RunContext, training: Training) -> bool:
    """Train beside the first member, and stop when it does."""

    def pause(training: Training) -> None:
        if context.stop_requested(training.done):
            context.signals.stop()

    try:
        train(training, lambda now: None, pause)
    except NonFinite:
        return False
    return True
