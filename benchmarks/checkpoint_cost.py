"""What checkpoints cost: seconds spent on them in real runs of the Fashion-MNIST config, against the runs' seconds.

    python benchmarks/checkpoint_cost.py [--runs 3] [--epochs 2] [--minutes 5] [--config FILE] [--root DIR]

Each run is `sparsekit fit` with the config's options in this process, shortened to `--epochs`. Two clocks run: one
over all of the run, from its first pruning to its last checkpoint, and one over what a run without checkpoints would
not do: taking a replica's snapshot, and `progress.save` (tensors and manifest written, hashed, flushed; old ones
removed). Candidates' files are not counted, for a merge reads them. The quotient is the share of the run's time that
checkpoints take; a run waits for less, as most are written beside its training.

A shortened run prunes as often as the whole one and trains less between, so its share is larger than the whole run's.
The second figure is the share in a run of the config's own epochs: the same seconds for each checkpoint at the end of
a replica or segment, those every `--minutes` besides, over the seconds that its optimizer steps take (its evaluations
left out, which makes the share larger). Mean and 95 % interval over the runs (Student's t).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t as student

from sparsekit import launch
from sparsekit.config import parser as options
from sparsekit.config.options import FitConfig
from sparsekit.planning import plan as planning
from sparsekit.run import progress
from sparsekit.training.replica import Training

CONFIG = Path(__file__).parents[1] / "configs" / "fashion_mnist_gmp95_soup3.yaml"


class Clock:
    """Seconds spent inside the functions that it wraps, and how often they were called."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        return timed


def read(*argv: str) -> FitConfig:
    return options.parse(options.build("checkpoint_cost", ""), argv)


def measure(argv: list[str], seed: int) -> dict[str, float]:
    """One run: its seconds, those of its checkpoints, and those of its optimizer steps."""
    run, kept, inside, steps = Clock(), Clock(), Clock(), Clock()
    before = launch.run, progress.save, Training.snapshot, Training.step
    launch.run, progress.save = run.around(before[0]), kept.around(before[1])
    Training.snapshot, Training.step = inside.around(before[2]), steps.around(before[3])  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            out = ("--wandb.mode", "disabled", "--out", str(Path(folder, "run")), "--seed", str(seed))
            launch.fit(read(*argv, *out))
    finally:
        launch.run, progress.save, Training.snapshot, Training.step = before  # type: ignore[method-assign]
    cost = kept.seconds + inside.seconds
    return {
        "run": run.seconds,
        "cost": cost,
        "keeps": kept.calls,
        "snapshots": inside.calls,
        "share": cost / run.seconds,
        "each": kept.seconds / kept.calls,
        "step": steps.seconds / steps.calls,
    }


def whole_share(row: dict[str, float], config: FitConfig, steps_per_epoch: int) -> float:
    """The share in a run of all the config's epochs."""
    plan = planning.summarize(config, planning.make_plan(config, planning.make_stages(config)))
    seconds = plan.total_epochs * steps_per_epoch * row["step"]
    ends = sum(segment.replicas for segment in plan.segments) + len(plan.segments)
    each = row["each"] + row["each"]  # inside a replica there is the snapshot too, at most as dear
    return (ends * row["each"] + seconds / (60.0 * config.checkpoint.minutes) * each) / seconds


def spread(values: list[float]) -> str:
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * mean(values):.3f} % ± {100 * half:.3f} (from {100 * min(values):.3f} to {100 * max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist")
    given = parser.parse_args()
    base = ["--config", str(given.config), "--data.root", given.root, "--checkpoint.minutes", str(given.minutes)]
    config = read(*base)
    images = round(60_000 * (1.0 - config.data.held_out))
    rows = []
    for seed in range(given.runs):
        row = measure([*base, "--epochs", str(given.epochs)], seed)
        row["whole"] = whole_share(row, config, images // config.data.batch_size)
        rows.append(row)
        print(
            f"run {seed + 1}: {row['run']:.1f} s, of them {row['cost']:.3f} s for {row['keeps']:.0f} checkpoints and "
            f"{row['snapshots']:.0f} snapshots ({1000 * row['each']:.1f} ms each); {1000 * row['step']:.1f} ms a step",
            flush=True,
        )
    print(f"{torch.get_num_threads()} threads, {given.epochs} of {config.epochs} epochs")
    print(f"share of the shortened runs:   {spread([row['share'] for row in rows])}")
    print(f"share of runs of {config.epochs} epochs:     {spread([row['whole'] for row in rows])}")


if __name__ == "__main__":
    main()
