"""What a run works with while it is under way."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sparsekit.api import Stage
from sparsekit.display.live import Display
from sparsekit.planning.replicas import Replica
from sparsekit.run import progress as places
from sparsekit.run.checkpoint import Keeper
from sparsekit.run.metrics_log import Log
from sparsekit.run.progress import Place
from sparsekit.run.signals import StopSignals
from sparsekit.training.setup import Setup

TOGETHER = 5
"""Steps after which the ranks of a team look whether one of them is to stop."""


@dataclass
class Job:
    """A run's setup, and where it reports, keeps checkpoints and hears of signals.

    Attributes:
        setup: Plan, data and model.
        tracker: Takes the rows.
        display: Shows the run.
        keeper: Takes the checkpoints.
        executor: Trains replicas.
        signals: Say when to stop.
        minutes: Time between checkpoints inside a replica.
        header: What else a checkpoint holds, asked for at each.
        ordered: Number of the checkpoint from which several ranks are training at present.
    """

    setup: Setup
    tracker: Log
    display: Display
    keeper: Keeper
    executor: Executor
    signals: StopSignals = field(default_factory=StopSignals)
    minutes: float = 5.0
    header: Callable[[], dict[str, object]] = dict
    ordered: int | None = None
    kept: float = field(default_factory=time.monotonic)

    def keep(self, place: Place) -> str:
        """Commit a checkpoint; the name of its manifest."""
        name = places.save(self.keeper, place, self.header() | {"ordered": self.ordered})
        self.kept = time.monotonic()
        return name

    def order(self, place: Place) -> str:
        """Commit a checkpoint from which other ranks train on: what they keep is good beside this one and its heirs."""
        self.ordered = self.keeper.number + 1
        return self.keep(place)

    def pause(self, place: Callable[[], Place], done: int = 0) -> None:
        """Between two steps: keep a checkpoint where one is due or asked for, and stop where that is asked for.

        Ranks of one team stop after the same step, `done`.
        """
        asked = self.asked(done)
        if asked or time.monotonic() - self.kept >= 60.0 * self.minutes:
            self.keep(place())
        if asked:
            self.signals.stop()

    def asked(self, done: int) -> bool:
        """Whether this rank, or any other of its team, is asked to stop; the team looks every few steps."""
        team = self.setup.team
        if team.size == 1:
            return self.signals.requested is not None
        if done % TOGETHER or not team.any(self.signals.requested is not None):
            return False
        self.signals.requested = self.signals.requested or signal.SIGTERM
        return True


Executor = Callable[[Job, Stage, Sequence[Replica], Place], Place]
"""Trains replicas of one segment, and returns the place with all of them settled."""
