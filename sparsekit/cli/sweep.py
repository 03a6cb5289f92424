"""`sparsekit sweep SWEEP.yaml`: train every run of a sweep file with `sparsekit fit`, and compare them at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsekit.cli.common import Parser
from sparsekit.display.text import score_text
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.run import directory
from sparsekit.sweep import spec
from sparsekit.sweep.runner import Sweep


def main(arguments: Sequence[str]) -> int:
    """Run or resume sweeps. Returns 0 where every run is done, 1 where one failed, 128 + N after a stop signal N.

    Raises:
        UserError: an option or a sweep file is wrong, or every run of one; nothing was started.
    """
    parser = Parser(
        prog="sparsekit sweep",
        description="Run a W&B sweep file on this machine: a grid or a random search of `sparsekit fit`.",
    )
    parser.add_argument(
        "files", metavar="SWEEP.yaml", nargs="+", help="sweep files as W&B takes them, without program and command too"
    )
    parser.add_argument("--count", type=_count, metavar="N", help="run the first N runs only; random needs it")
    parser.add_argument("--jobs", type=_count, default=1, metavar="J", help="runs at a time, which share the cores")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="directory of the runs, new or to resume (default: runs/NAME of the file); DIR/NAME where there are more",
    )
    given = parser.parse_args(list(arguments))
    paths = [expanded(file) for file in given.files]
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"sweep: {', '.join(given.files)} would share directories; give files of different names")
    base = expanded(given.out) if given.out else Path("runs")
    own = len(paths) == 1 and given.out
    sweeps = [Sweep(spec.read(path), given.count, base if own else base / path.stem) for path in paths]
    worst = 0
    for sweep in sweeps:
        with directory.locked(sweep.out):
            worst = max(worst, _run(sweep, given.jobs))
        if sweep.signum:
            break
    return worst


def _run(sweep: Sweep, jobs: int) -> int:
    """Run what is not done, print how each run ended, and compare all; returns the exit code."""
    for key in sweep.spec.ignored:
        _say(f"{key} is left to W&B: every run goes to its end")
    total = len(sweep.cells)
    _say(f"{sweep.out}: {total} runs, {len(sweep.done)} done before, {jobs} at a time")
    for name, error in sweep.failed.items():
        _say(f"{name}  failed: {error}")
    for child in sweep.run(jobs):
        number = f"[{len(sweep.done) + len(sweep.failed):{len(str(total))}}/{total}]"
        if child.name in sweep.done:
            name = sweep.done[child.name].get("score", "accuracy")
            value = sweep.done[child.name].get(f"test.{name}")
            reached = f"{score_text(name, value, 2)}, " if isinstance(value, float) else ""
            _say(f"{number} {child.name}  done: {reached}{child.seconds:.0f} s")
        elif child.name in sweep.failed:
            _say(f"{number} {child.name}  failed: {sweep.failed[child.name]}")
        else:
            _say(f"{child.name}  stopped")
    if sweep.signum:
        _say(f"{len(sweep.done)} of {total} done; the same command resumes")
        return 128 + sweep.signum
    _say(f"{len(sweep.done)} of {total} runs done" + (f", {len(sweep.failed)} failed:" if sweep.failed else ""))
    for name, error in sweep.failed.items():
        _say(f"  {name}: {error}")
    if sweep.done:
        done = [str(sweep.out / cell.name) for cell in sweep.cells if cell.name in sweep.done]
        _compare(done, sweep.out / "report.html")
    return 1 if sweep.failed else 0


def _compare(runs: Sequence[str], page: Path) -> None:
    """Write the comparison; an error there is a warning, since no run depends on it."""
    try:
        from sparsekit.report.page import write  # only now: it draws

        write(runs, page)
    except Exception as error:  # a plotting library may raise anything
        print(f"sparsekit: warning: {page} could not be made ({type(error).__name__}: {error})", file=sys.stderr)
    else:
        _say(f"compared: {page}")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"is {number}; give 1 or more")
    return number


def _say(text: str) -> None:
    print(text, flush=True)
