"""Draw a plan with characters: sparsity, learning rate, forks and merges. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.planning.plan import PlanRow, PlanSummary

_LEVELS = " ▁▂▃▄▅▆▇█"
_MARGIN = 17


def plan(found: PlanSummary, width: int = 80, plain: bool = False) -> str:
    """Draw a plan, with the budget from left to right.

    Sparsity and learning rate (the highest possible one) are bars from 0. Below them are the numbers of replicas, with
    marks for forks and merges.

    Args:
        found: The plan.
        width: Longest line in characters; below 57 it counts as 57.
        plain: Use only ASCII characters.
    """
    segments = [row for row in found.segments if row.epochs > 0]
    total = sum(row.epochs for row in segments)
    columns = max(40, width) - _MARGIN
    middles = [(i + 0.5) * total / columns for i in range(columns)]
    at = [_segment(segments, epoch) for epoch in middles]
    sparsity = [row.sparsity for row in at]
    rates = [_rate(row, epoch) for row, epoch in zip(at, middles, strict=True)]
    levels = " .:-=+*#@" if plain else _LEVELS
    top, lr = max(*sparsity, 1e-9), max(*rates, 1e-9)
    last = found.segments[-1].sparsity  # a last segment that only prunes has no column
    lines = _bars("sparsity", f"{100 * max(top, last):.4g} %", [s / max(top, last) for s in sparsity], 4, levels)
    lines += ["", *_bars("rate", f"{lr:.3g}", [r / lr for r in rates], 3, levels), ""]
    lines.append(" " * _MARGIN + _axis(total, columns))
    lines.append(f"{'replicas':<{_MARGIN}}" + _tracks(segments, total, columns, plain))
    return "\n".join(line.rstrip() for line in lines)


def _segment(segments: Sequence[PlanRow], epoch: float) -> PlanRow:
    return next((row for row in segments if epoch < row.start_epoch + row.epochs), segments[-1])


def _rate(row: PlanRow, epoch: float) -> float:
    """The learning rate at an epoch, interpolated between the segment's highest first and last rates."""
    done = (epoch - row.start_epoch) / row.epochs
    return row.lr_first[1] + (row.lr_last[1] - row.lr_first[1]) * min(max(done, 0.0), 1.0)


def _bars(name: str, top: str, shares: Sequence[float], height: int, levels: str) -> list[str]:
    """Draw bars of the shares, 0 to 1, as `height` lines; the first line is labelled with the top value."""
    steps = len(levels) - 1
    lines = []
    for line in reversed(range(height)):
        filled = [min(max(round(share * height * steps) - line * steps, 0), steps) for share in shares]
        label = f"{name:<9}{top:>7}" if line == height - 1 else ""
        lines.append(f"{label:<{_MARGIN}}" + "".join(levels[n] for n in filled))
    return lines


def _axis(total: float, columns: int) -> str:
    """The axis of epochs."""
    ticks = [f"{total * share:.3g}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    line = [" "] * columns
    for i, text in enumerate(ticks):
        start = min(round(i * columns / 4), columns - len(text))
        line[start : start + len(text)] = text
    return "".join(line)


def _tracks(segments: Sequence[PlanRow], total: float, columns: int, plain: bool) -> str:
    """Replicas over the budget: `<3=>` from fork to merge, `1-` for a single model."""
    fork, merge, many, one = "<>=-" if plain else "╞╡═─"
    line = [one] * columns
    for row in segments:
        start = round(row.start_epoch * columns / total)
        end = max(start + 1, round((row.start_epoch + row.epochs) * columns / total))
        if row.replicas == 1:
            text = f"1{one * (end - start - 1)}"
        else:
            count = str(row.replicas)
            room = end - start - 2
            inner = (count + many * room)[:room] if room >= len(count) else many * max(room, 0)
            text = (fork + inner + merge)[: end - start] if end - start >= 2 else merge
        line[start:end] = text
    return "".join(line[:columns])
