"""What a person sees of a run. On a terminal one live line, anywhere else plain lines; nothing is ever cut off."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sparsekit.display import plan_picture
from sparsekit.planning.plan import PlanSummary

_PLAIN_SECONDS = 10.0
"""Without a terminal, lines about progress keep at least this distance."""
_NATURAL_WIDTH = 10_000
"""Wider than any table; a narrower terminal wraps the lines by itself, and paths stay whole for copying."""


class Display:
    """Results on standard output, warnings on standard error. A context manager that owns the live line.

    Segments and replicas are counted from 0, as in `metrics.jsonl`, and shown from 1.

    Args:
        out: Where results go; by default standard output.
        err: Where warnings go; by default standard error.
        clock: Seconds, for the time left.
    """

    def __init__(
        self, out: Console | None = None, err: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._err, self._clock = out or plain_console(), err or plain_console(stderr=True), clock
        self._terminal = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: Progress | None = None
        self._total = 0
        self._done: dict[tuple[int, int], int] = {}
        self._place = ""
        self._segment = 0
        self._replicas = 0
        self._began = self._spoke = clock()

    def plan(self, rows: Sequence[Mapping[str, Any]], critical_epochs: float, total_epochs: float) -> None:
        """Show a plan, in rows as `plan_table` takes them, and what it costs."""
        self._print(plan_table(rows))
        cost = f"{critical_epochs:.4g} along the critical path, {total_epochs:.4g} in total"
        self._print(Text(f"\nreplica-epochs: {cost}\n", "dim"))

    def picture(self, plan: PlanSummary) -> None:
        """Draw a plan as wide as the terminal, up to 100 characters."""
        plain = not (self._out.encoding or "").lower().startswith("utf")
        self._print(Text(plan_picture.plan(plan, min(self._out.width, 100), plain)))

    def begin(self, total_steps: int) -> None:
        """Start the clock of a run of so many optimizer steps, over all segments and replicas."""
        self._total, self._began = total_steps, self._clock()
        if self._terminal:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
                TextColumn("{task.percentage:3.0f} %"),
                # The speed of the last minutes; merges and evaluations come in between.
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._out,
                expand=True,
                transient=True,
                refresh_per_second=4,
                speed_estimate_period=120.0,
                # Standard error that goes to a file must still get there.
                redirect_stderr=self._err.is_terminal,
            )
            self._live.add_task("starting", total=total_steps)
            self._live.start()

    def start_segment(self, index: int, total: int, sparsity: float, replicas: int) -> None:
        """A segment starts: its parent is pruned to `sparsity`. With 0 replicas it is pruned only."""
        self._segment, self._replicas = index, replicas
        self._place = f"segment {index + 1}/{total}  {percent(sparsity)} sparse"
        count = "prunes only" if not replicas else "1 replica" if replicas == 1 else f"{replicas} replicas"
        if self._live:
            self._live.update(self._live.task_ids[0], description=f"{self._place}  {count}")
        else:
            self._line(f"{self._place}  {count}")

    def progress(self, replica: int, done_steps: int, total_steps: int, loss: float) -> None:
        """A replica has done so many of its steps in this segment; `loss` is its training loss."""
        self._done[self._segment, replica] = done_steps
        done = sum(self._done.values())
        who = f"  replica {replica + 1}/{self._replicas}" if self._replicas > 1 else ""
        if self._live:
            text = f"{self._place}{who}  loss {loss:.4f}"
            self._live.update(self._live.task_ids[0], completed=done, description=text)
        elif done and self._clock() - self._spoke >= _PLAIN_SECONDS:
            left = (self._clock() - self._began) / done * max(self._total - done, 0)
            self._line(
                f"{self._place}{who}  step {done_steps}/{total_steps}  loss {loss:.4f}  about {duration(left)} left"
            )

    def merged(
        self, held_out: float, candidates: Sequence[float] = (), ingredients: int = 1, lost: bool = False
    ) -> None:
        """A segment is over.

        Args:
            held_out: Held-out accuracy of what it made, 0 to 1.
            candidates: The candidates' own; none or one where nothing was merged.
            ingredients: How many of them were used.
            lost: Whether it lies below the best of them by more than the margin.
        """
        score = f"{percent(held_out)} held out"
        if len(candidates) > 1:
            some = "" if ingredients == len(candidates) else f" of {len(candidates)}"
            mean, best = sum(candidates) / len(candidates), max(candidates)
            score = f"soup of {ingredients}{some}: {score} (candidates {percent(mean)} mean, {percent(best)} best)"
            score += f"  lost {100 * (best - held_out):.1f} points" if lost else ""
        self._line(f"{self._place}  {score}")

    def note(self, text: str) -> None:
        """Say something on standard output."""
        self._line(text)

    def show(self, what: RenderableType) -> None:
        """Put a table on standard output."""
        self._print(what)

    def warn(self, text: str) -> None:
        """Say something on standard error, in any thread."""
        # Where both are one terminal, only the live line's console knows how to print above it.
        console = self._out if self._live and self._err.is_terminal else self._err
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def finish(self, summary: Mapping[str, Any], wandb: Sequence[str] = ()) -> None:
        """Show the last table; `wandb` is the URL of the W&B run, or the folders that `wandb sync` takes."""
        self.close()
        self._print(Text())
        self._print(summary_table(summary, wandb))

    def close(self) -> None:
        """Take the live line away."""
        if self._live:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, text: str) -> None:
        self._spoke = self._clock()
        self._print(Text(text))

    def _print(self, what: RenderableType) -> None:
        for line in self._out.render_lines(what, self._out.options.update(width=_NATURAL_WIDTH), pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            self._out.print(text, soft_wrap=True)


def plain_console(stderr: bool = False) -> Console:
    """A console that shows text as it is: no markup, no emoji codes, no colours of rich's own choosing."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if isinstance(console.file, TextIOWrapper):
        console.file.reconfigure(errors="replace")  # an ASCII terminal shows "?" instead of ending the run
    return console


def plan_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a segment: `segment` (from 1), `start_epoch`, `epochs`, `sparsity`, `lr` (text), `replicas`, `merge`."""
    table = _table()
    for title in ("segment", "start", "epochs", "sparsity", "learning rate", "replicas", "merge"):
        table.add_column(title, justify="left" if title in ("learning rate", "merge") else "right")
    for row in rows:
        table.add_row(
            str(row["segment"]),
            f"{row['start_epoch']:.4g}",
            f"{row['epochs']:.4g}",
            percent(row["sparsity"], 2),
            row["lr"] or "–",
            str(row["replicas"]),
            row["merge"] or "–",
        )
    return table


def summary_table(summary: Mapping[str, Any], wandb: Sequence[str] = ()) -> Table:
    """The soup against its candidates, its size, and where everything is; what is missing or None is left out."""
    table = _table(header=False)
    table.add_column(style="dim")
    table.add_column()
    known = {key: value for key, value in summary.items() if value is not None}
    if known.get("candidates.count") == 1:  # nothing was merged: it would be compared with itself
        known = {key: value for key, value in known.items() if not key.startswith("candidates.")}

    def add(name: str, line: Callable[..., str], *keys: str) -> None:
        if all(key in known for key in keys):
            table.add_row(name, Text(line(*(known[key] for key in keys))))

    if "status" in known:
        name = " + ".join(str(known[key]) for key in ("method", "merge") if key in known)
        table.add_row(name, Text(known["status"], "" if known["status"] == "done" else "yellow"))
    mean, best = "candidates.mean_accuracy", "candidates.best_accuracy"
    if "test.accuracy" in known:
        text = f"{percent(known['test.accuracy'], 2)} on the test split"
        text += f", loss {known['test.loss']:.4f}" if "test.loss" in known else ""
        table.add_row("soup" if mean in known else "accuracy", Text(text, "bold"))
    for name, key in (("mean candidate", mean), ("best candidate", best)):
        add(name, lambda a, soup: f"{percent(a, 2)}  (soup {100 * (soup - a):+.2f})", key, "test.accuracy")
    add("merges lost", _lost, "merges.lost", "merges.count", "merges.margin")
    add("calibration", lambda e, b: f"ECE {e:.4f}, Brier {b:.4f}", "test.ece", "test.brier")
    add("worst class", lambda c, a: f"{percent(a, 2)}, class {c}", "test.worst_class", "test.worst_class_accuracy")
    add("corrupted", lambda a: f"{percent(a, 2)} on average over all kinds and severities", "test.corrupted_accuracy")
    add("sparsity", lambda a: f"{percent(a, 2)} of the prunable weights", "sparsity")
    add("", lambda a: f"{percent(a, 2)} of all parameters", "model_sparsity")
    add("nonzero", lambda a, n: f"{a:,} of {n:,} parameters", "nonzero", "parameters")
    add("model size", decimal, "model_bytes")
    add("time", lambda s, n: f"{duration(s)}, {n} segment{'s' * (n != 1)}", "wall_seconds", "segments")
    add("run", str, "out")
    add("model", lambda out, _: str(Path(out) / "model"), "out", "model_bytes")
    add("report", str, "report")
    urls = [place for place in wandb if place.startswith("http")]
    for url in urls:
        table.add_row("W&B", url)
    if folders := [shlex.quote(place) for place in wandb if place not in urls]:
        table.add_row("W&B", f"offline; to upload: wandb sync {' '.join(folders)}")
    return table


def _lost(lost: int, count: int, margin: float) -> str:
    points = f"{100 * margin:g} point{'s' * (margin != 0.01)}"
    return f"{lost} of {count}: the soup more than {points} below its best candidate, held out"


def percent(share: float, digits: int = 1) -> str:
    """A share of 0 to 1 for people. What is not all never reads 100 %."""
    while share < 1.0 <= round(share, digits + 2) and digits < 6:
        digits += 1
    return f"{100.0 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds, with two units where that helps."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _table(header: bool = True) -> Table:
    return Table(box=None, show_header=header, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
