"""Child processes, some at a time: started, watched, told to stop, and their last word read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsekit.sweep import warm

_POLL_SECONDS = 0.05
_ONE_RUN = {"WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_NAME"}


@dataclass(frozen=True)
class Task:
    """One process to run.

    Attributes:
        name: Its cell.
        arguments: The command.
        log: Where its output goes, behind what is there.
    """

    name: str
    arguments: Sequence[str]
    log: Path


class Pool:
    """Runs tasks, `jobs` at a time, until all ended or `stop` was called; plain ones of ours in warm processes.

    Args:
        jobs: How many at a time.
        environment: Variables of the children, beside this process's own.
        begin: Called with a task's name before its process starts.
        end: Called with its name and exit code when it ended; minus the signal's number where one killed it.
    """

    def __init__(
        self,
        jobs: int,
        environment: Mapping[str, str],
        begin: Callable[[str], None],
        end: Callable[[Task, int], None],
    ) -> None:
        self._jobs, self._environment, self._begin, self._end = jobs, environment, begin, end
        self._running: dict[int, tuple[Task, warm.Running]] = {}
        self._signal: int | None = None

    def run(self, tasks: Sequence[Task]) -> None:
        """Run them in order; returns when no process is left."""
        waiting = list(tasks)
        while self._running or (waiting and self._signal is None):
            for slot in range(self._jobs):
                if slot not in self._running and waiting and self._signal is None:
                    task = waiting.pop(0)
                    self._begin(task.name)
                    if process := self._started(task, slot):
                        self._running[slot] = (task, process)
                        if self._signal is not None:  # it came in between
                            process.send_signal(self._signal)
            time.sleep(_POLL_SECONDS)
            for slot, (task, process) in list(self._running.items()):
                if (code := process.poll()) is not None:
                    del self._running[slot]
                    self._end(task, code)

    def stop(self, signum: int) -> None:
        """Start nothing any more, and pass a signal on; a second one has the children leave at once."""
        self._signal = signum
        if not self._running:
            warm.abandon()
        for _, process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)

    def _started(self, task: Task, slot: int) -> warm.Running | None:
        """The task's process; None where the stop came first, or took along what was to fork it."""
        try:
            if self._signal is None:
                return self._start(task, slot)
        except (EOFError, ConnectionError):
            if self._signal is None:
                raise
        self._end(task, -(self._signal or 0))
        return None

    def _start(self, task: Task, slot: int) -> warm.Running:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        # Each child is a W&B run of its own, even where a sweep agent started this process.
        mine = {key: value for key, value in os.environ.items() if key not in _ONE_RUN}
        environment = {**mine, **self._environment, **devices(mine, slot)}
        if warm.fits(task.arguments):
            return warm.start(task.arguments, environment, task.log)
        with task.log.open("ab") as log:
            return subprocess.Popen(
                task.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C at a terminal reaches every process in front, and a child that gets it twice keeps nothing.
                start_new_session=True,
                preexec_fn=warm.die_with_parent if sys.platform == "linux" else None,
            )


def threads(jobs: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The cores shared out between the children, unless somebody said already how many threads there are to be."""
    if "OMP_NUM_THREADS" in environment:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}


def devices(environment: Mapping[str, str], slot: int) -> dict[str, str]:
    """One of several GPUs that `CUDA_VISIBLE_DEVICES` lists, in turn."""
    listed = [part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return {"CUDA_VISIBLE_DEVICES": listed[slot % len(listed)]} if len(listed) > 1 else {}


def last_word(log: Path, begin: int, code: int) -> str:
    """The line of a child's output, from an offset in bytes on, that says why it failed."""
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - 20_000))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    told = [line.removeprefix("sparsekit: error: ") for line in lines if line.startswith("sparsekit: error: ")]
    return (told or lines[-1:] or [how])[-1] if code > 0 else how
