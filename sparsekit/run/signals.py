"""SIGTERM and SIGINT: finish the step, keep a checkpoint, leave with 143 or 130. A second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from sparsekit.training import ranks

_ECHO_SECONDS = 10.0


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception, so that no plugin swallows it.

    Attributes:
        signum: Number of the signal; the exit code is 128 more.
        out: The run directory, once there is one.
    """

    out: str | None = None

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Handles both signals while it is entered. A signal raises Stopped where it strikes: what lies between two
    checkpoints is done again. Under `deferred`, as in a training loop, it only sets `requested`.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferring, self._struck, self._since = False, False, 0.0
        self._before: dict[int, object] = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave it to the code inside to look at `requested` and to call `stop`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def reraise_if_swallowed(self) -> Iterator[None]:
        """Raise Stopped again where the code inside lost it: libraries turn what is raised in a call of theirs into an
        error of their own (torch, where it looks what an object holds), or try something else instead.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as lost:
            if not self._struck or isinstance(lost, (Stopped, GeneratorExit)):  # the latter ends what Stopped has left
                raise
            error = lost
        if self._struck and self.requested is not None:
            raise Stopped(self.requested) from error

    def stop(self) -> None:
        """Raise Stopped for the signal that came."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if ranks.size() > 1 and time.monotonic() - self._since < _ECHO_SECONDS:
                return  # torchrun passes on what a whole process group has got already
            os._exit(128 + signum)
        self.requested, self._since = signum, time.monotonic()
        if not self._deferring:
            self._struck = True
            raise Stopped(signum)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
