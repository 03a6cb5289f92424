"""Which page tells which study, and the page that leads to them all."""

from __future__ import annotations

from collections.abc import Callable

import study_channels
import study_forks
import study_pages
from study_page import Page
from study_soups import soups
from study_tables import Rows, select, table

HEAD = """# Results

What averaging at every pruning step brings, measured with this tool, at equal compute too, the disappointing cells
included. Differences are points of test accuracy where nothing else is said, paired by seed, with their 95 % interval.
*Better* and *worse* is what a t-test tells, p < 0.05 after Holm's correction over all tests of the table that it stands
in; *not told apart* is the rest, and does not say that both are equal. m is the number of replicas. Each page is made
from rows that lie beside it; `make studies-digits` (some three hours on two cores) and `make studies-fashion` (an hour
for each method) train them anew.
"""
UNRUN = """
[When do soups pay?](when.md) puts all of them on one picture.

All of them are small. Fashion-MNIST at full size, in bf16, is ready for a CUDA device and was not run, for want of one:
`python benchmarks/studies.py fashion-full fashion-full-bimp --jobs 1`.
"""

CLIPPED = """`bimp` ran with `--method.dense 0.3` and three cycles: 0.3 of the budget dense, 0.233 a cycle.
There ALLR's factor d is held at its lower bound, 0.778: the rate is the clip's and does not adapt to a pruning, as it
does by default since ([why](../decisions/0020-retraining-rates.md)).
"""
LINEAR = """Retraining warmed up linearly in these runs; it does so on half a cosine since 29 November 2026.
"""
WARMED_UP_LINEARLY = ("digits-bimp", "digits-fork", "digits-methods", "digits-robust", "digits-vary", "fashion-bimp")
"""Studies with runs of before: a study that is trained anew leaves this list."""
BORROWED = {"digits-fork": "digits-bimp"}
"""Studies whose page tells another's rows."""


def notes(name: str, every: Rows) -> list[str]:
    """What a reader must know of how the runs differ from those of today."""
    rows = [*every[name], *every.get(BORROWED.get(name, ""), [])]
    clipped = bool(select(rows, method="bimp", method__dense=0.3))
    restarts = any(row.get("method") in ("imp", "bimp", "oneshot") for row in rows)
    return [CLIPPED] * clipped + [LINEAR] * (restarts and name in WARMED_UP_LINEARLY)


def page(name: str, every: Rows) -> Page:
    """A study's page and plots from all studies' rows."""
    make: Callable[[str, Rows], Page] = {
        "digits-fork": study_forks.fork,
        "digits-late": study_forks.late,
        "digits-vary": study_pages.vary,
        "digits-robust": study_pages.robust,
        "digits-apart": study_pages.apart,
        "digits-methods": study_pages.methods,
        "digits-channels": study_channels.channels,
        "fashion-channels": study_channels.channels,
        "digits-recipes": study_pages.recipes,
        "digits-saturated-apart": study_pages.apart,
        "digits-saturated-vary": study_pages.vary_saturated,
        "digits-saturated-swa": study_pages.trajectories,
    }.get(name, soups)
    told = make(name, every)
    told.parts[1:1] = notes(name, every)
    command = f"python benchmarks/studies.py {name}"
    told.parts.append(
        f"Made from [{name}.jsonl]({name}.jsonl) by `{command}`; the sweep files are in `configs/studies/`.\n"
    )
    return told


def index(every: Rows) -> str:
    """The page that leads to the others, with what each says."""
    pages = {name: page(name, every) for name in every}
    rows = [[f"[{told.title}]({name}.md)", len(every[name])] for name, told in pages.items()]
    ready = "" if "fashion-full" in every else UNRUN
    parts = [HEAD + ready, table(["study", "runs"], rows)]
    parts += [f"## {told.title}\n\n" + "".join(f"- {line}\n" for line in told.found) for told in pages.values()]
    return "\n".join(parts)
