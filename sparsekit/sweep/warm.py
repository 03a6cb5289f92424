"""Processes that start with everything imported: forked from one that did the imports, which outlast many runs.

Linux only; elsewhere, and for commands other than this interpreter's own `sparsekit`, processes start afresh.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

_OURS = [sys.executable, "-m", "sparsekit"]
_IMPORTED = ["sparsekit.fit", "sparsekit.report.command", "torch.utils.flop_counter", "torchmetrics", "wandb"]


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
        process = context.Process(target=_run, args=(list(arguments[3:]), dict(environment), str(log)))
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return Warm(process)


def die_with_parent() -> None:
    """In the child: SIGTERM, which keeps a checkpoint, when the sweep's own process is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run(arguments: list[str], environment: dict[str, str], log: str) -> None:
    os.setsid()  # Ctrl-C at a terminal reaches every process in front, and one that gets it twice keeps nothing
    die_with_parent()  # the process that forks it goes with the sweep's own
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sparsekit", *arguments]
    runpy.run_module("sparsekit", run_name="__main__")
