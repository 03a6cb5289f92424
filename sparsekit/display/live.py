"""A run's output: a live line on a terminal, plain lines elsewhere; text is never truncated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sparsekit.display import plan_picture
from sparsekit.display.tables import FLOOR, plan_table, summary_table
from sparsekit.display.text import duration, gap_text, listed, percent, score_text
from sparsekit.planning.plan import PlanSummary

_PLAIN_SECONDS = 10.0
"""Minimum time between lines of progress without a terminal."""
_NATURAL_WIDTH = 10_000
"""Wider than any table: the terminal itself wraps long lines, so that paths can be copied whole."""


class Display:
    """Shows results on standard output and warnings on standard error. A context manager for the live line.

    Its methods count segments and replicas from 0, as in `metrics.jsonl`, and show them from 1.

    Args:
        out: Console for results; by default standard output.
        err: Console for warnings; by default standard error.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, out: Console | None = None, err: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._err, self._clock = out or plain_console(), err or plain_console(stderr=True), clock
        self._terminal = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: Progress | None = None
        self._total = 0
        self._done: dict[tuple[int, int], int] = {}
        self._heading = ""
        self._segment = 0
        self._replicas = 0
        self._said: set[str] = set()
        self._start = self._last_line = clock()
        self._notebook = not self._terminal and "ipykernel" in sys.modules
        self._updating = ""
        self.lines: list[str] = []

    def plan(self, rows: Sequence[Mapping[str, Any]], critical_epochs: float, total_epochs: float) -> None:
        """Show a plan, with rows as `plan_table` takes them, and its cost in replica-epochs."""
        self._print(plan_table(rows))
        cost = f"{critical_epochs:.4g} along the critical path, {total_epochs:.4g} in total"
        self._print(Text(f"\nreplica-epochs: {cost}\n", "dim"))

    def picture(self, plan: PlanSummary) -> None:
        """Draw a plan as wide as the terminal, up to 100 characters."""
        plain = not (self._out.encoding or "").lower().startswith("utf")
        self._print(Text(plan_picture.plan(plan, min(self._out.width, 100), plain)))

    def begin(self, total_steps: int) -> None:
        """Start the clock of a run of `total_steps` optimizer steps over all segments and replicas."""
        self._total, self._start = total_steps, self._clock()
        if self._terminal:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
                TextColumn("{task.percentage:3.0f} %"),
                # Averages over two minutes of speed, as merges and evaluations interrupt training.
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._out,
                expand=True,
                transient=True,
                refresh_per_second=4,
                speed_estimate_period=120.0,
                # Leave standard error alone if it goes to a file.
                redirect_stderr=self._err.is_terminal,
            )
            self._live.add_task("starting", total=total_steps)
            self._live.start()

    def start_segment(self, index: int, total: int, sparsity: float, replicas: int) -> None:
        """Show the start of a segment whose parent was pruned to `sparsity`; with 0 replicas it only prunes."""
        self._segment, self._replicas = index, replicas
        self._heading = f"segment {index + 1}/{total}  {percent(sparsity)} sparse"
        count = "prunes only" if not replicas else "1 replica" if replicas == 1 else f"{replicas} replicas"
        if self._live:
            self._live.update(self._live.task_ids[0], description=f"{self._heading}  {count}")
        else:
            self._line(f"{self._heading}  {count}")

    def progress(self, replica: int, done_steps: int, total_steps: int, loss: float) -> None:
        """Show that a replica has done `done_steps` of its steps in this segment; `loss` is its training loss."""
        self._done[self._segment, replica] = done_steps
        done = sum(self._done.values())
        who = f"  replica {replica + 1}/{self._replicas}" if self._replicas > 1 else ""
        if self._live:
            text = f"{self._heading}{who}  loss {loss:.4f}"
            self._live.update(self._live.task_ids[0], completed=done, description=text)
        elif done and (self._notebook or self._clock() - self._last_line >= _PLAIN_SECONDS):
            left = (self._clock() - self._start) / done * max(self._total - done, 0)
            text = (
                f"{self._heading}{who}  step {done_steps}/{total_steps}  loss {loss:.4f}  about {duration(left)} left"
            )
            if self._notebook:
                self._update(text)
            else:
                self._line(text)

    def merged(
        self, name: str, held_out: float, candidates: Sequence[float] = (), ingredients: int = 1, lost: bool = False
    ) -> None:
        """Show the result of a segment.

        Args:
            name: The task's name of its score.
            held_out: Held-out score of the segment's model.
            candidates: Held-out scores of the candidates; none or one if nothing was merged.
            ingredients: Number of candidates that were used.
            lost: Whether the model is worse than the best candidate by more than the margin.
        """
        score = f"{score_text(name, held_out)} held out"
        if len(candidates) > 1:
            some = "" if ingredients == len(candidates) else f" of {len(candidates)}"
            mean, best = (score_text(name, each) for each in (sum(candidates) / len(candidates), max(candidates)))
            score = f"soup of {ingredients}{some}: {score} (candidates {mean} mean, {best} best)"
            score += f"  lost {gap_text(name, max(candidates) - held_out, 1)}" if lost else ""
        self._line(f"{self._heading}  {score}")

    def note(self, text: str) -> None:
        """Print a line on standard output, and keep it."""
        self.lines.append(text)
        self._line(text)

    def once(self, text: str) -> None:
        """Print a line on standard output, unless it was printed before."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def notes(self, lines: Sequence[str]) -> None:
        """Print lines on standard output, and an empty one after them."""
        for line in (*lines, ""):
            self._line(line)

    def show(self, what: RenderableType) -> None:
        """Print a table or text on standard output."""
        self._print(what)

    def warn(self, text: str) -> None:
        """Print a warning on standard error; may be called from any thread."""
        # If both go to one terminal, only the console of the live line can print above that line.
        console = self._out if self._live and self._err.is_terminal else self._err
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def emptied(self, layers: Sequence[str], sparsity: float) -> None:
        """Warn of layers whose weights are all 0 at this sparsity of the model, 0 to 1; of each once."""
        if new := [name for name in layers if name not in self._said]:
            self._said.update(new)
            self.warn(f"{listed(new)}: all weights are 0 at {percent(sparsity, 2)} sparsity; {FLOOR}")

    def finish(self, summary: Mapping[str, Any], wandb: Sequence[str] = ()) -> None:
        """Show the summary; `wandb` has the URL of the W&B run and the folders for `wandb sync`."""
        self.close()
        self._print(Text())
        self._print(summary_table(summary, wandb))

    def close(self) -> None:
        """Remove the live line."""
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
        self._last_line = self._clock()
        self._print(Text(text))

    def _update(self, text: str) -> None:
        """Write a line in place of the last one that was written so, for notebooks."""
        self._out.file.write(f"\r{text.ljust(len(self._updating))}" if text else f"\r{' ' * len(self._updating)}\r")
        self._out.file.flush()
        self._updating = text

    def _print(self, what: RenderableType) -> None:
        if self._updating:
            self._update("")
        for line in self._out.render_lines(what, self._out.options.update(width=_NATURAL_WIDTH), pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            self._out.print(text, soft_wrap=True)


class Silent(Display):
    """Shows nothing: keeps the lines of `note`, and hands warnings on.

    Args:
        warn: Called with each warning.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(Console(quiet=True), Console(quiet=True))
        self._hand_on = warn

    def warn(self, text: str) -> None:
        """Hand a warning on."""
        self._hand_on(text)


def plain_console(stderr: bool = False) -> Console:
    """A console that shows text as it is, without rich's markup, emoji codes and highlighting."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, force_jupyter=False)
    if isinstance(console.file, TextIOWrapper):
        console.file.reconfigure(errors="replace")  # "?" on an ASCII terminal, instead of an exception
    return console
