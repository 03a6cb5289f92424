"""Run a sweep: find the runs that are still to do, train them, and report how each ended.

The run directories alone say how far a sweep is: a run is done when its `summary.json` says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config import parser, yaml_file
from sparsekit.config.options import FitConfig, describe, flatten
from sparsekit.config.sweep_values import check_arrived
from sparsekit.config.wandb_args import as_flags
from sparsekit.errors import UserError
from sparsekit.run import directory
from sparsekit.sweep.pool import Child, Pool
from sparsekit.sweep.spec import Cell, Spec

_CHECKED = 500
"""How many runs have their options checked before anything starts; `fit` itself refuses the others' when they start."""
_LOCK_SECONDS = 60.0


class Sweep:
    """A sweep file and the directory of its runs.

    Args:
        spec: The sweep file.
        count: The most runs; None for all of a grid.
        out: The directory.

    Attributes:
        spec, out: As above.
        cells: The runs.
        done: Summaries of the runs that are done, by name.
        failed: Why a run failed or cannot start, by name.
        signum: The signal that stopped the sweep.

    Raises:
        UserError: `fit` would refuse every run, or the directory holds a run of the same name with other values.
    """

    def __init__(self, spec: Spec, count: int | None, out: Path) -> None:
        self.spec, self.out, self.cells = spec, out, spec.cells(count)
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.signum: int | None = None
        options = parser.build("sparsekit fit", "")
        for index, cell in enumerate(self.cells):
            if index < _CHECKED:
                try:
                    config = parser.parse(options, spec.options(cell))
                    check_arrived(flatten(describe(config)), cell.values)
                except UserError as error:
                    self.failed[cell.name] = str(error)
                    continue
                self._compare(cell, config)
            if summary := directory.finished(out / cell.name):
                self.done[cell.name] = summary
        if len(self.failed) == len(self.cells):
            raise UserError(f"{next(iter(self.failed.values()))} (in all runs of {spec.path})")

    def run(self, jobs: int) -> Iterator[Child]:
        """Train all other runs, `jobs` at a time; yields each when it ended, by then in `done` or in `failed`.

        After a stop signal one that is in neither was stopped.
        """
        ended = {*self.done, *self.failed}
        runs = {cell.name: cell for cell in self.cells if cell.name not in ended}
        deadline = time.monotonic() + _LOCK_SECONDS  # runs of a sweep that was killed may still write a checkpoint
        while any(_in_use(self.out / name) for name in runs) and time.monotonic() < deadline:
            time.sleep(0.2)
        environment = {
            "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", self.out.name),
            # the launchers of this interpreter come first
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // jobs)),
            **self.spec.environment,
        }
        commands = {name: self.spec.arguments(cell, self.out / name) for name, cell in runs.items()}
        pool = Pool(jobs)
        for child in pool.run(commands, self.out / "logs", environment):
            summary = directory.finished(self.out / child.name)
            if summary and child.process.returncode == 0:
                self.done[child.name] = summary
            elif pool.signum is None:
                self.failed[child.name] = child.error()
            yield child
        self.signum = pool.signum

    def _compare(self, cell: Cell, config: FitConfig) -> None:
        """Refuse a run directory whose configuration has other values than the sweep file."""
        file = self.out / cell.name / "config.yaml"
        if not file.is_file():
            return
        found, given = flatten(yaml_file.read(str(file))), flatten(yaml_file.parse(yaml.safe_dump(describe(config))))
        keys = {flag[2:].partition("=")[0] for flag in as_flags(cell.values)}
        if other := sorted(key for key in keys if found.get(key) != given.get(key)):
            raise UserError(
                f"--out {self.out} holds {cell.name} with another value of {', '.join(other)}; give another --out"
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_use(run: Path) -> bool:
    try:
        if (run / ".lock").is_file():
            with directory.locked(run):
                pass
    except UserError:
        return True
    return False
