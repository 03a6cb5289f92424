"""Distribute a segment's replicas over the ranks that torchrun started.

The leader commits a checkpoint and sends an order: which checkpoint to start from, and which replicas each team trains.
Every team reads that checkpoint, trains its share with a single-process executor, and writes its own checkpoints beside
the leader's. Its last checkpoint names the candidates' files and holds its rows of metrics, so that the leader can
merge as if it had trained all replicas itself.
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
from sparsekit.executors import stacked
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
    """The executor of rank 0: sends orders, trains its own share, and collects the other ranks' results.

    Attributes:
        ranks: The ranks of the run.
        own: The executor that trains rank 0's share.
        orders_sent: How many orders were sent so far.
    """

    ranks: Ranks
    own: Executor
    orders_sent: int = 0

    def __call__(self, context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> RunProgress:
        team, number = context.setup.team, self.orders_sent
        self.orders_sent += 1
        # rounding in a stacked replica depends on the others of its stack: a resumed run must form the same stacks
        keys = [r.index if self.own is stacked.train_replicas else i for i, r in enumerate(replicas)]
        shares = [
            [r.index for r, key in zip(replicas, keys, strict=True) if key % team.count == i] for i in range(team.count)
        ]
        context.checkpoints.wait()
        at = replace(at, ordered=context.checkpoints.number + 1)
        manifest = context.keep(at)
        order = {"manifest": manifest, "shares": shares, "mask": masks.digest(at.parent.masks)}
        self.ranks.tell(f"order/{number}", order)
        for rank in self.ranks.others:
            if wrong := self.ranks.ask(f"taken/{number}/{rank}", rank):
                raise RunError(f"rank {rank}: {wrong}")
        with _stop_together(context, self.ranks):
            at = self.own(context, stage, [r for r in replicas if r.index in shares[0]], at)
        for rank in self.ranks.others:
            if result := self.ranks.ask(f"over/{number}/{rank}", rank):
                at = add_results(context, at, CheckpointStore(context.checkpoints.folder, prefix(rank)), result)
        at = replace(at, ordered=None)
        context.keep(at)
        return at

    def finish(self) -> None:
        """Tell the other ranks that there are no more orders."""
        self.ranks.tell(f"order/{self.orders_sent}", None)


def follow(context: RunContext, ranks: Ranks) -> None:
    """Train this rank's share of each segment until the leader has no more orders."""
    number = 0
    with _stop_together(context, ranks):
        while order := ranks.ask(f"order/{number}"):
            try:
                with context.signals.reraise_if_swallowed():
                    stage, at = _read_order(context, order)
            except (Damaged, RunError, OSError) as error:
                ranks.tell(f"taken/{number}/{ranks.rank}", str(error))
                raise RunError(str(error)) from error
            ranks.tell(f"taken/{number}/{ranks.rank}", "")
            ranks.tell(f"over/{number}/{ranks.rank}", _train_share(context, stage, at, order["shares"]))
            number += 1
        context.setup.team.leave()
    ranks.over = True


def _train_share(context: RunContext, stage: Stage, at: RunProgress, shares: list[list[int]]) -> str | None:
    """Train this rank's share.

    Returns:
        The name of the checkpoint that holds the results; None if the share is empty, or another member writes it.
    """
    team = context.setup.team
    share = [r for r in context.setup.plan[stage.index].replicas if r.index in shares[team.index]]
    at = replace(at, snapshots={r.index: at.snapshots[r.index] for r in share if r.index in at.snapshots})
    if team.is_first:
        return context.keep(context.executor(context, stage, share, at)) if share else None
    assist(context, stage, share, at)
    return None


def assist(context: RunContext, stage: Stage, replicas: Sequence[Replica], at: RunProgress) -> None:
    """Train the same replicas as the team's first member, which alone reports, scores and saves them."""
    setup = context.setup
    for replica in replicas:
        schedule = setup.for_replica(replica).method.learning_rate(stage)
        snapshot = at.snapshots.get(replica.index)
        for attempt in range(snapshot.attempt if snapshot else 0, ATTEMPTS):
            training = Training(setup, at.parent, stage, replica, schedule, attempt)
            if snapshot and snapshot.attempt == attempt:
                training.restore(snapshot)
            with context.signals.deferred():
                finite = _stays_finite(context, training)
            if setup.team.agree(finite):
                break


def add_results(context: RunContext, at: RunProgress, checkpoints: CheckpointStore, manifest: str) -> RunProgress:
    """Add what another rank's checkpoint holds to the progress, and log that rank's rows.

    Raises:
        RunError: the checkpoint is damaged, or of another segment.
    """
    try:
        body, files = checkpoints.open(checkpoints.folder / manifest)
        other = progress.restore(checkpoints, at.parent, len(context.setup.plan), body, files)
    except Damaged as damage:
        raise RunError(f"checkpoint {manifest} of another rank: {damage}") from damage
    if other.segment != at.segment or body["ordered"] != at.ordered:
        raise RunError(f"checkpoint {manifest} of another rank is not of this segment; go on with --resume")
    context.tracker.extend(body["rows"])
    known = {candidate.index for candidate in at.candidates}
    candidates = (*at.candidates, *(c for c in other.candidates if c.index not in known))
    finished = (*at.finished, *(index for index in other.finished if index not in at.finished))
    snapshots = {index: s for index, s in {**at.snapshots, **other.snapshots}.items() if index not in finished}
    return replace(at, candidates=candidates, finished=finished, snapshots=snapshots)


def add_interrupted_results(context: RunContext, at: RunProgress) -> RunProgress:
    """Add what the other ranks of an interrupted run had trained since the leader's last order."""
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
            if (body["ordered"], body["segment"]) == (at.ordered, at.segment):
                at = add_results(context, at, checkpoints, path.name)
            break
    return at


def prefix(rank: int) -> str:
    """The prefix of the names of a rank's checkpoint files."""
    return f"{OTHERS}{rank}-"


def _read_order(context: RunContext, order: dict[str, Any]) -> tuple[Stage, RunProgress]:
    """Read the checkpoint that an order names: the stage, and the progress to train from.

    Raises:
        RunError: the checkpoint cannot be seen from this node, or its mask is not the leader's.
        Damaged: the checkpoint is damaged.
    """
    leader = CheckpointStore(context.checkpoints.folder)
    path = leader.folder / order["manifest"]
    if not path.is_file():
        raise RunError(f"{path} is not to be seen here; --out must be on a file system that all nodes share")
    body, files = leader.open(path)
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
def _stop_together(context: RunContext, ranks: Ranks) -> Iterator[None]:
    """Stop all ranks of a team when one of them leaves, which the others see as an error raised by torch.

    A rank that receives a signal outside of its training loop announces it, so that the others stop with the same
    signal.

    Raises:
        Stopped: this rank or another of its team received a signal.
        RunError: another rank of the team is gone.
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
            if signum := ranks.read(f"stopped/{team.index * team.size + member}"):
                raise Stopped(signum) from error
        raise RunError(f"a rank of this team is gone ({text}); go on with --resume") from error


def _stays_finite(context: RunContext, training: Training) -> bool:
    """Train with the team's first member, stopping when it stops; whether the replica stayed finite."""

    def pause(training: Training) -> None:
        if context.stop_requested(training.done):
            context.signals.stop()

    try:
        train(training, lambda now: None, pause)
    except NonFinite:
        return False
    return True
