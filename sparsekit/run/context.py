"""What a run works with while it trains: setup, rows, display, checkpoints, signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sparsekit.api import Stage
from sparsekit.display.live import Display
from sparsekit.planning.replicas import Replica
from sparsekit.run import progress
from sparsekit.run.checkpoint import CheckpointStore
from sparsekit.run.metrics_log import Log
from sparsekit.run.progress import RunProgress
from sparsekit.run.signals import StopSignals
from sparsekit.training.setup import Setup

STOP_CHECK_STEPS = 5
"""Optimizer steps between two looks of a team's ranks at whether one of them is to stop."""


@dataclass(frozen=True)
class RunContext:
    """A run's setup, and where it reports, keeps checkpoints and hears of signals.

    Attributes:
        setup: Plan, data and model.
        tracker: Takes the rows.
        display: Shows the run.
        checkpoints: Takes the checkpoints.
        executor: Trains replicas.
        signals: Say when to stop.
        minutes: Time between checkpoints inside a replica.
        header: What else a checkpoint holds; called for each.
    """

    setup: Setup
    tracker: Log
    display: Display
    checkpoints: CheckpointStore
    executor: Executor
    signals: StopSignals = field(default_factory=StopSignals)
    minutes: float = 5.0
    header: Callable[[], dict[str, object]] = dict

    def keep(self, at: RunProgress) -> str:
        """Commit a checkpoint, and return its manifest's name."""
        return progress.save(self.checkpoints, at, self.header())

    def pause(self, at: Callable[[], RunProgress], done: int = 0) -> None:
        """Between two steps: keep a checkpoint where one is due or a signal came, and stop for a signal.

        Args:
            at: Makes the progress that a checkpoint keeps.
            done: Optimizer steps that the replica has taken; the ranks of one team stop after the same one.

        Raises:
            Stopped: a signal came.
        """
        asked = self.stop_requested(done)
        if asked or self.checkpoints.age >= 60.0 * self.minutes:
            self.keep(at())
        if asked:
            self.signals.stop()

    def stop_requested(self, done: int) -> bool:
        """Whether this rank, or any other of its team, is asked to stop; a team looks every few steps."""
        team = self.setup.team
        if team.size == 1:
            return self.signals.requested is not None
        if done % STOP_CHECK_STEPS or not team.any(self.signals.requested is not None):
            return False
        self.signals.requested = self.signals.requested or signal.SIGTERM
        return True


Executor = Callable[[RunContext, Stage, Sequence[Replica], RunProgress], RunProgress]
"""Trains replicas of one segment, and returns the progress with all of them finished."""
