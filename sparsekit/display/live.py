"""What a person sees of a run. On a terminal one live line, anywhere else plain lines; nothing is ever cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sparsekit.display import plan_picture
from sparsekit.display.tables import plan_table, summary_table
from sparsekit.display.text import duration, percent
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
