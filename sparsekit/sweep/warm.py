"""Processes that start with everything imported: forked from one that did the imports, which outlast many runs.

Linux only; elsewhere, and for commands other than this interpreter's own `sparsekit`, processes start afresh.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import runpy
import select
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

_OURS = [sys.executable, "-m", "sparsekit"]
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_IMPORTED = ["sparsekit.fit", "sparsekit.cli.report", "torch.utils.flop_counter", "torchmetrics", "wandb"]


class Running(Protocol):
    """A child process, with the part of `subprocess.Popen` that a pool needs."""

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one killed it; None while it runs."""
        ...

    def send_signal(self, sig: int) -> None:
        """Pass a signal on; one that ended already gets none."""
        ...


class Warm:
    """A forked process."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        """See `Running`."""
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """See `Running`."""
        if self._process.exitcode is None and self._process.pid is not None:
            os.kill(self._process.pid, sig)


def fits(arguments: Sequence[str]) -> bool:
    """Whether a command can be run in a forked process."""
    return sys.platform == "linux" and list(arguments[:3]) == _OURS


def start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Warm:
    """Run a command of ours; it begins in the same place, with this environment alone, and writes behind a log."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", before or "1")  # read as torch is imported
    try:
        _serve()
        process = context.Process(target=_run, args=(list(arguments[3:]), dict(environment), str(log), os.getpid()))
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return Warm(process)


def _serve() -> None:
    """Start the process that forks, if there is none, with the signals blocked that a whole process group gets: it
    stays until the runs have ended, which get them from the pool. One that comes while a run starts waits for it.
    """
    multiprocessing.resource_tracker.ensure_running()  # unblocks signals, so that it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def abandon() -> None:
    """Kill the process that forks while nothing runs in it: its imports may take long. Waiting for it is EOFError."""
    if server := _server():
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def _server() -> int | None:
    return multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined,no-any-return]


def die_with_parent() -> None:
    """In the child: SIGTERM, which keeps a checkpoint, when the sweep's own process is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def die_with(sweep: int) -> None:
    """In a forked child, whose parent is not the sweep's process: the same."""
    try:
        ended = os.pidfd_open(sweep)
    except OSError:  # it went before that
        os._exit(128 + signal.SIGTERM)

    def watch() -> None:
        select.select([ended], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _run(arguments: list[str], environment: dict[str, str], log: str, sweep: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()  # Ctrl-C at a terminal reaches every process in front, and one that gets it twice keeps nothing
    die_with(sweep)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sparsekit", *arguments]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    runpy.run_module("sparsekit", run_name="__main__")
