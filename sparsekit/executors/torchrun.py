"""Replicas shared out among the ranks that torchrun started.

The leader commits a checkpoint and gives an order: this place, these replicas each. Every team reads the place, trains
its share with the executor of one process, and keeps checkpoints of its own beside the leader's. What it made comes
back as its last checkpoint, candidates' files and rows of metrics, so that the leader merges as if it had trained all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from sparsekit.api import Stage
from sparsekit.errors import RunError
from sparsekit.executors import stacked as vectorized
from sparsekit.executors.sequential import ATTEMPTS
from sparsekit.planning.replicas import Replica, fork
from sparsekit.pruning import masks
from sparsekit.run import progress as places
from sparsekit.run.checkpoint import OTHERS, Damaged, Keeper
from sparsekit.run.context import Executor, Job
from sparsekit.run.loop import start
from sparsekit.run.metrics_log import Rows
from sparsekit.run.progress import Place
from sparsekit.run.signals import Stopped
from sparsekit.training.ranks import Ranks
from sparsekit.training.replica import Fault, Training, train


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

    def __call__(self, job: Job, stage: Stage, replicas: Sequence[Replica], at: Place) -> Place:
        team, number = job.setup.team, self.orders
        self.orders += 1
        # stacked replicas round as their company does: who was together stays together
        stacked = self.own is vectorized.train_replicas
        places_of = [r.index if stacked else i for i, r in enumerate(replicas)]
        shares = [
            [r.index for r, place in zip(replicas, places_of, strict=True) if place % team.count == i]
            for i in range(team.count)
        ]
        manifest = job.order(at)
        order = {"manifest": manifest, "shares": shares, "mask": masks.digest(at.parent.masks)}
        self.ranks.tell(f"order/{number}", order)
        for rank in self.ranks.others:
            if wrong := self.ranks.ask(f"taken/{number}/{rank}", rank):
                raise RunError(f"rank {rank}: {wrong}")
        with _together(job, self.ranks):
            at = self.own(job, stage, [r for r in replicas if r.index in shares[0]], at)
        for rank in self.ranks.others:
            if told := self.ranks.ask(f"over/{number}/{rank}", rank):
                at = absorb(job, at, Keeper(job.keeper.folder, prefix(rank)), told)
        job.ordered = None
        job.keep(at)
        return at

    def finish(self) -> None:
        """Let the others go."""
        self.ranks.tell(f"order/{self.orders}", None)


def follow(job: Job, ranks: Ranks, own: Executor) -> None:
    """What every rank but the leader does: train its share of each segment until there are no more orders."""
    number = 0
    with _together(job, ranks):
        while order := ranks.ask(f"order/{number}"):
            try:
                with job.signals.minded():
                    stage, at = _take(job, order)
            except (Damaged, RunError, OSError) as error:
                ranks.tell(f"taken/{number}/{ranks.rank}", str(error))
                raise RunError(str(error)) from error
            ranks.tell(f"taken/{number}/{ranks.rank}", "")
            ranks.tell(f"over/{number}/{ranks.rank}", _obey(job, own, stage, at, order["shares"]))
            number += 1
    ranks.over = True


def _obey(job: Job, own: Executor, stage: Stage, at: Place, shares: list[list[int]]) -> str | None:
    """Train this rank's share; the name of the checkpoint that keeps it, of a team's first member."""
    team = job.setup.team
    share = [r for r in fork(job.setup.config, stage) if r.index in shares[team.index]]
    at = replace(at, underway={r.index: at.underway[r.index] for r in share if r.index in at.underway})
    if team.heads:
        return job.keep(own(job, stage, share, at)) if share else None
    assist(job, stage, share, at)
    return None


def assist(job: Job, stage: Stage, replicas: Sequence[Replica], at: Place) -> None:
    """Train beside the head of a team, which reports, scores and saves; as often as it does."""
    setup, schedule = job.setup, job.setup.method.learning_rate(stage)
    for replica in replicas:
        underway = at.underway.get(replica.index)
        for attempt in range(underway.attempt if underway else 0, ATTEMPTS):
            training = Training(setup, at.parent, stage, replica, schedule, attempt)
            if underway and underway.attempt == attempt:
                training.restore(underway)
            with job.signals.deferred():
                well = _goes_well(job, training)
            if setup.team.agree(well):
                break


def absorb(job: Job, at: Place, keeper: Keeper, manifest: str) -> Place:
    """The place with what another rank made of it, by that rank's checkpoint; its rows are logged."""
    try:
        body, files = keeper.open(keeper.folder / manifest)
        theirs = places.restore(keeper, at.parent, len(job.setup.stages), body, files)
    except Damaged as damage:
        raise RunError(f"checkpoint {manifest} of another rank: {damage}") from damage
    job.tracker.extend(body["rows"])
    new = [c for c in theirs.candidates if c.index not in {mine.index for mine in at.candidates}]
    finished = (*at.finished, *(index for index in theirs.finished if index not in at.finished))
    underway = {index: u for index, u in {**at.underway, **theirs.underway}.items() if index not in finished}
    return replace(at, candidates=(*at.candidates, *new), finished=finished, underway=underway)


def absorb_all(job: Job, at: Place, ordered: int | None, warn: Callable[[str], None]) -> Place:
    """The place of a run that was cut off, with what its other ranks had made since the leader's order."""
    folder = job.keeper.folder
    names = {path.stem.partition("-")[0] + "-" for path in folder.glob(f"{OTHERS}*.json")}
    for name in sorted(names) if ordered else ():
        keeper = Keeper(folder, name)
        for path in sorted(keeper.manifests(), reverse=True):
            try:
                body, _ = keeper.open(path)
            except Damaged as damage:
                warn(f"checkpoint {path.name} is damaged: {damage}")
                continue
            if body["ordered"] == ordered:
                at = absorb(job, at, keeper, path.name)
            break
    return at


def prefix(rank: int) -> str:
    """What the names of a rank's checkpoint files start with."""
    return f"{OTHERS}{rank}-"


def _take(job: Job, order: dict[str, Any]) -> tuple[Stage, Place]:
    """The place that the leader ordered; raises RunError where its mask is not the leader's."""
    lead = Keeper(job.keeper.folder)
    path = lead.folder / order["manifest"]
    if not path.is_file():
        raise RunError(f"{path} is not to be seen here; --out must be on a file system that all nodes share")
    body, files = lead.open(path)
    at = places.restore(job.keeper, start(job.setup).parent, len(job.setup.stages), body, files)
    if masks.digest(at.parent.masks) != order["mask"]:
        raise RunError("the parent's mask is not the leader's")
    job.ordered = body["ordered"]
    assert isinstance(job.tracker, Rows)
    job.tracker.rows.clear()
    stage = replace(job.setup.stages[at.segment], relative_change=at.change or 0.0)
    return stage, replace(at, candidates=(), finished=())


@contextmanager
def _together(job: Job, ranks: Ranks) -> Iterator[None]:
    """Where ranks train one replica together: one that leaves is met as an error of torch's in the others.

    One that a signal strikes outside of its training loop says so before it leaves, and the others stop for it too.
    """
    try:
        with job.signals.minded():
            yield
    except Stopped as stop:
        with suppress(RunError):
            ranks.tell(f"stopped/{ranks.rank}", stop.signum)
        raise
    except RuntimeError as error:
        team = job.setup.team
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        gone = isinstance(error, dist.DistError) or re.search("onnection|peer|ocket|imed out|gloo", text)
        if team.size == 1 or isinstance(error, RunError) or not gone:
            raise
        job.signals.stop()
        for member in range(team.size):
            if signum := ranks.heard(f"stopped/{team.index * team.size + member}"):
                raise Stopped(signum) from error
        raise RunError(f"a rank of this team is gone ({text}); go on with --resume") from error


def _goes_well(job: Job, training: Training) -> bool:
    """Train beside the first member, and stop when it does."""

    def pause(training: Training) -> None:
        if job.asked(training.done):
            job.signals.stop()

    try:
        train(training, lambda now: None, pause)
    except Fault:
        return False
    return True
