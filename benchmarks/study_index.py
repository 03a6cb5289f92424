"""Which page tells which study, and the page that leads to them all."""

from __future__ import annotations

from collections.abc import Callable

import study_channels
import study_forks
import study_pages
from study_saturated import saturated
from study_soups import Page, Rows, soups
from study_tables import select, table

HEAD = """# Results

What averaging at every pruning step brings, measured with this tool, at equal compute too, the disappointing cells
included. Differences are points of test accuracy where nothing else is said, paired by seed, ± standard error, **bold**
where p < 0.05 (t-test, not corrected for their number). Each page is made from rows that lie beside it;
`make studies-digits` (some three hours on two cores) and `make studies-fashion` (an hour for each method)
train them anew.
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


def notes(name: str, every: Rows) -> str:
    """What a reader must know of how the runs differ from those of today."""
    rows = [*every[name], *every.get(BORROWED.get(name, ""), [])]
    clipped = bool(select(rows, method="bimp", method__dense=0.3))
    restarts = any(row.get("method") in ("imp", "bimp", "oneshot") for row in rows)
    return "\n" * clipped + CLIPPED * clipped + ("\n" + LINEAR) * (restarts and name in WARMED_UP_LINEARLY)


def page(name: str, every: Rows) -> Page:
    """A study's page and plots from all studies' rows."""
    make: Callable[[str, Rows], Page] = {
        "digits-gmp": soups,
        "digits-bimp": soups,
        "fashion": soups,
        "fashion-bimp": soups,
        "fashion-full": soups,
        "fashion-full-bimp": soups,
        "digits-fork": study_forks.fork,
        "digits-late": study_forks.late,
        "digits-vary": study_pages.vary,
        "digits-robust": study_pages.robust,
        "digits-apart": study_pages.apart,
        "digits-methods": study_pages.methods,
        "digits-saturated": saturated,
        "digits-channels": study_channels.channels,
        "fashion-channels": study_channels.channels,
    }[name]
    told = make(name, every)
    command = f"python benchmarks/studies.py {name}"
    made = f"\nMade from [{name}.jsonl]({name}.jsonl) by `{command}`; the sweep files are in `configs/studies/`.\n"
    plots = {f"{name}-{plot}.svg": svg for plot, svg in told.plots.items()}
    title, rest = told.text.split("\n", 1)
    return Page(f"{title}\n{notes(name, every)}{rest}{made}", plots, told.found)


def index(every: Rows) -> str:
    """The page that leads to the others, with what each says."""
    pages = {name: page(name, every) for name in every}
    titles = {name: told.text.partition("\n")[0].removeprefix("# ") for name, told in pages.items()}
    rows = [[f"[{titles[name]}]({name}.md)", len(found)] for name, found in every.items()]
    ready = "" if "fashion-full" in every else UNRUN
    parts = [HEAD + ready, table(["study", "runs"], rows)]
    for name, told in pages.items():
        parts.append(f"## {titles[name]}\n\n" + "".join(f"- {line}\n" for line in told.found))
    return "\n".join(parts)
