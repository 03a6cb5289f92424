"""`sparsekit sweep SWEEP.yaml`: every cell is a `sparsekit fit` process of its own; at the end they are compared."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sparsekit.config import parser as options
from sparsekit.config.userpath import expanded
from sparsekit.errors import UserError
from sparsekit.run import directory as rundir
from sparsekit.sweep import pool, spec
from sparsekit.sweep.state import State

_TRIED = 500
"""So many cells have their options tried before anything starts; the rest tell what is wrong when they run."""
_LOCK_SECONDS = 60.0
"""A run that a killed sweep left behind gets this long to keep its checkpoint."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"the following arguments are required: (.*)", r"\1 must be given", message)
        message = re.sub(r"argument (\S+): invalid (?:_count|int) value: (.*)", r"\1 is \2; give a number", message)
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Run a sweep, or go on with one; 0 where every cell is done, 1 where one failed, 143 or 130 after a signal, which
    the children got too.

    Raises:
        UserError: the file or every cell of it is wrong; nothing was started.
    """
    parser = _Parser(
        prog="sparsekit sweep",
        description="Run a W&B sweep file on this machine: a grid or a random search of `sparsekit fit`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", metavar="SWEEP.yaml", nargs="+", help="sweep files as W&B takes them; program and command may miss"
    )
    parser.add_argument("--count", type=_count, metavar="N", help="run the first N cells only; random needs it")
    parser.add_argument("--jobs", type=_count, default=1, metavar="J", help="runs at a time, which share the cores")
    parser.add_argument(
        "--out", metavar="DIR", help="where the runs go, and went before (default: runs/NAME of file); DIR/NAME of many"
    )
    given = parser.parse_args(list(arguments))
    paths = [expanded(file) for file in given.files]
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"sweep: {', '.join(given.files)} would share directories; give files of different names")
    read = [(path, *_read(path, given.count)) for path in paths]  # nothing starts where one of them is wrong
    worst = 0
    for path, sweep, cells, wrong in read:
        base = expanded(given.out) if given.out else None
        out = Path("runs", path.stem) if base is None else base / path.stem if len(paths) > 1 else base
        with rundir.locked(out):
            worst = max(worst, Sweep(sweep, cells, out, given.jobs, wrong).run())
        if worst > 128:  # a signal
            break
    return worst


def _read(path: Path, count: int | None) -> tuple[spec.Spec, list[spec.Cell], dict[str, str]]:
    sweep = spec.read(path)
    cells = sweep.cells(count)
    wrong = _wrong(sweep, cells)
    if len(wrong) == len(cells):
        raise UserError(f"{next(iter(wrong.values()))} (in all runs of {path})")
    return sweep, cells, wrong


class Sweep:
    """A sweep in its directory, whose lock this process holds."""

    def __init__(
        self, sweep: spec.Spec, cells: Sequence[spec.Cell], out: Path, jobs: int, wrong: dict[str, str]
    ) -> None:
        self._spec, self._cells, self._out, self._jobs, self._wrong = sweep, cells, out, jobs, wrong
        self._state = State(out, cells)
        self._began: dict[str, tuple[float, int]] = {}
        self._signal: int | None = None

    def run(self) -> int:
        """Everything that is not done yet, then the comparison."""
        for note in self._spec.notes:
            _say(note)
        tasks = []
        for cell in self._cells:
            if cell.name in self._wrong:
                self._state.mark(cell.name, "failed", self._wrong[cell.name])
                self._tell(cell.name, f"failed: {self._wrong[cell.name]}")
            elif rundir.finished(self._out / cell.name):
                self._state.mark(cell.name, "done")
            else:
                tasks.append(self._task(cell))
        self._state.write()
        _say(f"{self._out}: {len(self._cells)} runs, {self._state.count('done')} done before, {self._jobs} at a time")
        environment = {
            "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", self._out.name),
            # The children's own interpreter and launchers come first.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **self._spec.environment,
            **pool.threads(self._jobs, os.environ),
        }
        crew = pool.Pool(self._jobs, environment, self._begin, self._end)
        before = {
            number: signal.signal(number, partial(self._stop, crew)) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            crew.run(tasks)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal is not None:
            _say(f"{self._state.count('done')} of {len(self._cells)} done; the same command goes on")
            return 128 + self._signal
        return self._finish()

    def _task(self, cell: spec.Cell) -> pool.Task:
        folder = self._out / cell.name
        return pool.Task(cell.name, self._spec.arguments(cell, folder), self._out / "logs" / f"{cell.name}.log")

    def _begin(self, name: str) -> None:
        _wait_for(self._out / name / ".lock", lambda: self._signal is not None)
        log = self._out / "logs" / f"{name}.log"
        self._began[name] = (time.monotonic(), rundir.size(log))
        if self._signal is None:
            self._state.begin(name)

    def _end(self, task: pool.Task, code: int) -> None:
        began, offset = self._began[task.name]
        summary = rundir.finished(self._out / task.name)
        if code == 0 and summary:
            self._state.end(task.name, "done")
            accuracy = summary.get("test.accuracy")
            reached = f"{100 * accuracy:.2f} %, " if isinstance(accuracy, float) else ""
            self._tell(task.name, f"done: {reached}{time.monotonic() - began:.0f} s")
        elif self._signal is not None:
            self._state.end(task.name, "stopped")
            _say(f"{task.name}  stopped")
        else:
            error = pool.last_word(task.log, offset, code)
            self._state.end(task.name, "failed", error)
            self._tell(task.name, f"failed: {error}")

    def _stop(self, crew: pool.Pool, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        crew.stop(signum)

    def _finish(self) -> int:
        done = [str(self._out / cell.name) for cell in self._cells if self._state.entries[cell.name].status == "done"]
        failed = {
            cell.name: e.error for cell in self._cells if (e := self._state.entries[cell.name]).status == "failed"
        }
        _say(f"{len(done)} of {len(self._cells)} runs done" + (f", {len(failed)} failed:" if failed else ""))
        for name, error in failed.items():
            _say(f"  {name}: {error}")
        if done:
            _compare(done, self._out / "report.html")
        return 1 if failed else 0

    def _tell(self, name: str, what: str) -> None:
        ended = sum(self._state.count(status) for status in ("done", "failed"))
        width = len(str(len(self._cells)))
        _say(f"[{ended:{width}}/{len(self._cells)}] {name}  {what}")


def _compare(runs: Sequence[str], page: Path) -> None:
    """The comparison page; what keeps it from being made loses no run."""
    try:
        from sparsekit.report.page import write  # only now: it draws

        write(runs, page)
    except Exception as error:  # a plotting library may raise anything
        print(f"sparsekit: warning: {page} could not be made ({type(error).__name__}: {error})", file=sys.stderr)
    else:
        _say(f"compared: {page}")


def _wrong(sweep: spec.Spec, cells: Sequence[spec.Cell]) -> dict[str, str]:
    """What `fit` would say of the options of cells that it would refuse."""
    parser, found = options.build("sparsekit fit", ""), {}
    for cell in cells[:_TRIED]:
        try:
            options.parse(parser, sweep.options(cell))
        except UserError as error:
            found[cell.name] = str(error)
    return found


def _wait_for(lock: Path, stopped: Callable[[], bool]) -> None:
    """Wait while a process that a killed sweep left behind still holds a run; `fit` itself says who, if it stays."""
    if not lock.is_file():
        return
    deadline = time.monotonic() + _LOCK_SECONDS
    with lock.open("a") as file:
        while time.monotonic() < deadline and not stopped():
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.2)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"is {number}; give 1 or more")
    return number


def _say(text: str) -> None:
    print(text, flush=True)
