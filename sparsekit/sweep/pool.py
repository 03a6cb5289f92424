"""Child processes, some at a time: start them, pass signals on to them, and read why one failed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from sparsekit.run.signals import STOP_SIGNALS

_POLL_SECONDS = 0.05
_ONE_RUN = {"WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_NAME"}


class Child:
    """A command in a process of its own.

    Args:
        name: A name for it.
        arguments: The command line.
        log: File to which its output is appended.
        environment: Its variables, beside those of this process.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self._log, self._began = name, log, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._offset = file.tell()
            self.process = subprocess.Popen(
                ["/usr/bin/env", *arguments],  # which says in the log that a launcher is missing
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # each child is a W&B run of its own, also where a sweep agent started this process
                env={key: value for key, value in os.environ.items() if key not in _ONE_RUN} | dict(environment),
                # Ctrl-C reaches a terminal's whole process group, and a run that gets it twice keeps no checkpoint
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    @property
    def seconds(self) -> float:
        """Wall time since its start."""
        return time.monotonic() - self._began

    def error(self) -> str:
        """The line that says why it failed: sparsekit's own, or else the last one, or else how it ended."""
        code = self.process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        with self._log.open("rb") as file:
            file.seek(max(self._offset, self._log.stat().st_size - 20_000))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        ours = [line.removeprefix("sparsekit: error: ") for line in lines if line.startswith("sparsekit: error: ")]
        return [f"exit code {code}", *lines[-1:], *ours][-1]


class Pool:
    """Runs commands as child processes, `jobs` at a time.

    Attributes:
        signum: The stop signal that this process got while it ran commands. Every child got it too, and no
            more were started. A second signal is passed on as well, upon which `sparsekit fit` leaves at once.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self.signum: int | None = None
        self._unsent: list[int] = []

    def run(self, commands: Mapping[str, Sequence[str]], logs: Path, environment: Mapping[str, str]) -> Iterator[Child]:
        """Run the commands in order, and yield each when it ended. Only in the main thread, which gets the signals.

        Args:
            commands: Command lines by name.
            logs: Directory of their output, in `NAME.log`.
            environment: Variables of the children, beside those of this process.
        """
        waiting, running = list(commands.items()), dict[int, Child]()
        before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        try:
            while running or (waiting and self.signum is None):
                for slot in range(self._jobs):
                    if slot not in running and waiting and self.signum is None:
                        name, arguments = waiting.pop(0)
                        running[slot] = Child(name, arguments, logs / f"{name}.log", {**environment, **_device(slot)})
                time.sleep(_POLL_SECONDS)
                while self._unsent:  # sent from here, not from the handler: a child that just started gets it once too
                    signum = self._unsent.pop(0)
                    for child in running.values():
                        child.process.send_signal(signum)
                for slot, child in list(running.items()):
                    if child.process.poll() is not None:
                        yield running.pop(slot)
        finally:
            for child in running.values():
                child.process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._unsent.append(signum)


def _device(slot: int) -> dict[str, str]:
    """One of several GPUs that `CUDA_VISIBLE_DEVICES` lists, in turn."""
    listed = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return {"CUDA_VISIBLE_DEVICES": listed[slot % len(listed)]} if len(listed) > 1 else {}


def _die_with_parent() -> None:
    """In the child: have the kernel send SIGTERM, upon which it keeps a checkpoint, when the sweep is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
