"""Stop signals: finish the step, commit a checkpoint, exit with 128 plus the signal's number. A second exits at once.

They are SIGTERM and SIGINT; SIGUSR1 and SIGUSR2, which clusters send ahead of a job's end; and SIGHUP, when a terminal
closes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from sparsekit.training import ranks

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_ECHO_SECONDS = 10.0
_REPEAT_SECONDS = 1.0


class Stopped(BaseException):
    """A signal stopped the run. Not an `Exception`, so that plugins do not swallow it.

    Attributes:
        signum: Number of the signal; the exit code is 128 more.
        out: The run directory; None before it exists.
    """

    out: str | None = None

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """A context manager that handles `STOP_SIGNALS`; one that is ignored, as `nohup` does with SIGHUP, stays ignored.

    A signal raises `Stopped` at once, since a resumed run repeats what came after the last checkpoint. Under
    `deferred`, as in a training loop, it only sets `requested`.

    Args:
        exits: Whether a second signal ends the process; False raises KeyboardInterrupt, for a process of others.

    Attributes:
        requested: Number of the signal that came; None before.
    """

    def __init__(self, exits: bool = True) -> None:
        self.exits = exits
        self.requested: int | None = None
        self._deferring, self._raised, self._since = False, False, 0.0
        self._previous: dict[int, object] = {}
        self._pid = os.getpid()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Do not raise on a signal: the block checks `requested` and calls `stop` itself."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def reraise_if_swallowed(self) -> Iterator[None]:
        """Re-raise `Stopped` if the block swallowed it: torch and vmap catch exceptions raised in their callbacks."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as other:
            # GeneratorExit closes generators that Stopped left suspended
            if not self._raised or isinstance(other, (Stopped, GeneratorExit)):
                raise
            error = other
        if self._raised and self.requested is not None:
            raise Stopped(self.requested) from error

    def stop(self) -> None:
        """Raise `Stopped` if a signal came."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a process that reads images, just forked: the run ends it
        if self.requested is not None:
            passed = time.monotonic() - self._since
            if ranks.size() > 1 and passed < _ECHO_SECONDS:
                return  # torchrun forwards a signal that the whole process group has received already
            if signum == self.requested != signal.SIGINT and passed < _REPEAT_SECONDS:
                return  # GNU timeout sends its signal to its child, and then to the child's process group
            if not self.exits:
                raise KeyboardInterrupt
            os._exit(128 + signum)
        self.requested, self._since = signum, time.monotonic()
        if not self._deferring:
            self._raised = True
            raise Stopped(signum)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            for signum in STOP_SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN or signum in STOP_SIGNALS[:2]:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
