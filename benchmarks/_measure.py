"""What all benchmarks share: alternation, medians with intervals, memory of fresh processes, and how results are told.

A machine's speed drifts, and others may work on it. So what is compared runs in turns, in one process or as processes
one after another, and a figure is the median of the ratios of neighbours, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from statistics import median
from typing import TypeVar

Figure = TypeVar("Figure")
NO_CUDA = 3
"""How gpu.py ends where there is no device."""
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, with the ends of its 95 % interval and how many pairs there are."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass
class Section:
    """What one benchmark has to tell: a table, what to know about it, and numbers behind the table, for JSON alone."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[dict[str, object]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row, and show it: a benchmark may take long."""
        self.rows.append([str(cell) for cell in cells])
        print("  " + " | ".join(self.rows[-1]), flush=True)

    def markdown(self) -> str:
        """The section for docs/benchmarks.md."""
        table = [self.header, ["---"] * len(self.header), *self.rows] if self.rows else []
        lines = [f"| {' | '.join(row)} |" for row in table]
        return "\n".join([f"## {self.title}", "", *lines, *([""] if lines else []), *self.notes, ""])


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as something that returns how many seconds it took."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def alternate(
    runs: Mapping[str, Callable[[], Figure]], rounds: int, warmup: int = 1, until: float = inf
) -> dict[str, list[Figure]]:
    """What each run returns in each round, its seconds mostly; the order turns round from round to round.

    No round but the first begins after `until`, in seconds of the monotonic clock.
    """
    times: dict[str, list[Figure]] = {name: [] for name in runs}
    for number in range(-warmup, rounds):
        if number > 0 and time.monotonic() > until:
            break
        for name in list(runs)[:: 1 if number % 2 else -1]:
            figure = runs[name]()
            if number >= 0:
                times[name].append(figure)
    return times


def ratio(over: Sequence[float], under: Sequence[float], samples: int = 2000) -> Ratio:
    """Of neighbours: the median of `over` divided by `under`, and its percentile bootstrap interval."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    chance = random.Random(0)
    medians = sorted(median(chance.choices(ratios, k=len(ratios))) for _ in range(samples))
    return Ratio(median(ratios), medians[round(0.025 * samples)], medians[round(0.975 * samples) - 1], len(ratios))


def milliseconds(times: Sequence[float]) -> str:
    """A median for people."""
    value = 1e3 * median(times)
    return f"{value / 1e3:.2f} s" if value >= 1e4 else f"{value:.3g} ms"


# --- memory -----------------------------------------------------------------------------------------


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def peak_bytes() -> int:
    """The most memory this process ever held; getrusage would start with what the parent process held."""
    return _status("VmHWM:")


def extra_bytes(work: Callable[[], object]) -> int:
    """How much more memory the process held at most during `work` than before it; fair in a fresh process only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or `work` would get what was freed before, and seem to need nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS:")
    result = work()
    extra = peak_bytes() - before
    del result
    return extra


# --- processes --------------------------------------------------------------------------------------


def child(script: str, *arguments: str, threads: int | None = None) -> dict[str, float]:
    """Run a benchmark's own child process, and read the JSON that it prints last."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads), check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def sparsekit(*arguments: str, threads: int | None = None, launcher: Sequence[str] = ()) -> tuple[float, str]:
    """Run the command in a process of its own: seconds, and an empty text or why it failed."""
    command = [*(launcher or [sys.executable]), "-m", "sparsekit", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads), check=False)
    seconds = time.perf_counter() - began
    reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return seconds, reason if done.returncode else ""


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a child, which imports sparsekit from where this process has it."""
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


# --- telling ----------------------------------------------------------------------------------------


def machine() -> str:
    """One line: processor, cores, threads, versions."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "timm", "numpy", "sparsekit-soups"))
    threads = os.environ.get("OMP_NUM_THREADS", "as torch chooses")
    return (
        f"{models[0] if models else platform.machine()}, {cores} cores, threads: {threads}; "
        f"Python {platform.python_version()}, {versions}; {platform.system()} {platform.release()}"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def main(measure: Callable[[bool], Section], description: str | None) -> None:
    """A benchmark's command line: measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller problems; some minutes in all")
    parser.add_argument("--json", type=Path, help="write the section for benchmarks/run.py")
    options = parser.parse_args()
    print(machine(), flush=True)
    section = measure(options.quick)
    print("\n" + section.markdown())
    if options.json:
        options.json.write_text(json.dumps(asdict(section)))
