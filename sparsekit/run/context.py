"""What a run needs while it trains: setup, metrics log, display, checkpoints, signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
"""Optimizer steps between two checks of a team's ranks whether one of them should stop."""


@dataclass(frozen=True)
class RunContext:
    """What a run's main loop and its executors need.

    Attributes:
        setup: Plan, data and model.
        tracker: Logs rows of metrics.
        display: Shows the run to the user.
        checkpoints: Stores the checkpoints.
        executor: Trains replicas.
        signals: Stop requests.
        minutes: Minutes between checkpoints inside a replica.
        header: Returns further entries for a checkpoint's manifest; called for each checkpoint.
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
        self.checkpoints.wait()
        return progress.save(self.checkpoints, at, self.header())

    def keep_beside(self, at: RunProgress, alone: bool = False) -> None:
        """Commit a checkpoint beside what follows; `checkpoints.wait` raises what went wrong.

        With `alone` no older one stays: where the last two share all that is large but what the newest does not need.
        """
        self.checkpoints.beside(partial(progress.save, self.checkpoints, at, self.header(), alone))

    def pause(self, at: Callable[[], RunProgress], done: int = 0) -> None:
        """Between two optimizer steps, commit a checkpoint if one is due or a signal came, and stop for a signal.

        Args:
            at: Returns the progress to commit.
            done: Optimizer steps that the replica has taken; all ranks of a team stop after the same step.

        Raises:
            Stopped: a signal came.
        """
        stop = self.stop_requested(done)
        if stop or self.checkpoints.age >= 60.0 * self.minutes:
            self.keep(at())
        if stop:
            self.signals.stop()

    def stop_requested(self, done: int) -> bool:
        """Whether this rank or another of its team should stop; teams check every `STOP_CHECK_STEPS` steps."""
        team = self.setup.team
        if team.size == 1:
            return self.signals.requested is not None
        if done % STOP_CHECK_STEPS or not team.any(self.signals.requested is not None):
            return False
        self.signals.requested = self.signals.requested or signal.SIGTERM
        return True


Executor = Callable[[RunContext, Stage, Sequence[Replica], RunProgress], RunProgress]
"""Trains the given replicas of one segment, and returns the progress with all of them finished."""
