"""What the W&B mirror costs the default run, offline.

    python benchmarks/wandb_cost.py [--quick] [--json FILE]

Real `sparsekit fit` processes, with `--wandb.mode offline` and `disabled` in turns. Wall time is what a person waits
for; processor time is that of the process and of every process that it starts, W&B's own service among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import _measure

TICKS = os.sysconf("SC_CLK_TCK")
MARK = "SPARSEKIT_BENCHMARK_RUN"


def processor_seconds(mark: str) -> dict[int, float]:
    """Seconds that each living process with this mark in its environment has used."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICKS
        except OSError:  # it ended, or is somebody else's
            continue
    return found


def run(mode: str) -> tuple[float, float]:
    """Wall and processor seconds of one fit."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sparsekit", "fit", "--wandb.mode", mode, "--out", f"{folder}/run"]
        environment = {key: value for key, value in _measure.environment().items() if not key.startswith("WANDB")}
        used: dict[int, float] = {}
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env={**environment, MARK: folder}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            used |= processor_seconds(folder)
            time.sleep(0.05)
        wall = time.perf_counter() - began
        while left := processor_seconds(folder):  # W&B's service ends a moment later
            used |= left
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return wall, sum(used.values())


def measure(quick: bool) -> _measure.Section:
    """The table: seconds with and without, and the ratio of neighbours."""
    rounds = 2 if quick else 6
    section = _measure.Section("W&B offline", ["time of a default run", "without", "with", "ratio"])
    times: dict[str, list[tuple[float, float]]] = {"disabled": [], "offline": []}
    for number in range(rounds):
        for mode in list(times)[:: 1 if number % 2 else -1]:
            times[mode].append(run(mode))
    for index, name in enumerate(("wall", "processor")):
        without, with_it = ([pair[index] for pair in times[mode]] for mode in times)
        ratio = _measure.ratio(with_it, without)
        section.add(name, f"{median(without):.2f} s", f"{median(with_it):.2f} s", ratio)
    return section


if __name__ == "__main__":
    _measure.main(measure, __doc__)
