"""Whole runs on Fashion-MNIST at full size: how much of their time trains, and how accurate they get.

What trains is the time inside the training loop, with the copy of the trained weights to the host; the rest is data,
BatchNorm, scores, merges and checkpoints. Imports are not counted.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from _gpu import REPLICAS, Part, failed, in_ranks, tell

from sparsekit.cli.main import main
from sparsekit.executors import sequential, stacked

TRAIN_IMAGES, SMALL, LARGE = 54_000, "cifar_resnet20", "cifar_resnet18"
SMALL_EPOCHS, LEAST, MOST = 3, 6, 30
START = 0.2
SLACK = 0.5
"""Share of the time that is left which the large run is to train in; its merges and scores come on top."""
OPTIONS = "SPARSEKIT_BENCHMARK_FIT"
"""The variable that tells the ranks what to fit."""


class Clock:
    """Seconds inside a function that it replaces in a module."""

    def __init__(self, module: Any, name: str) -> None:
        self.seconds, self.work = 0.0, getattr(module, name)
        setattr(module, name, self)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.work(*arguments, **keywords)
        finally:
            self.seconds += time.perf_counter() - began


def measure(part: Part) -> None:
    """A row a run; the one of the large model is as long as the time allows."""
    clocks = [Clock(sequential, "train"), Clock(stacked, "_train")]
    if "RANK" in os.environ:
        options = json.loads(os.environ[OPTIONS])
        if wrong := in_process(options):
            raise RuntimeError(wrong)
        if os.environ["RANK"] == "0":
            trained_file(options[-1]).write_text(str(sum(clock.seconds for clock in clocks)))
        return
    large, batch, few = (SMALL, 512, 2) if part.quick else (LARGE, 128, SMALL_EPOCHS)
    common = ["--data.name", "fashion_mnist", "--data.root", part.data, "--data.batch_size", str(batch)]
    common += ["--wandb.mode", "disabled", "--evaluation.report", "false"]
    common += ["--model.kwargs", "{depth: 8}"] * part.quick
    many = ["--replicas.count", str(REPLICAS), "--replicas.start", str(START), "--method", "gmp"]

    def fit(what: str, options: list[str], work: Callable[[list[str]], str] | None = None) -> float:
        before = sum(clock.seconds for clock in clocks)
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "run")
            try:
                wrong = (work or in_process)([*options, *common, "--out", out])
            except (Exception, SystemExit) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                tell(f"Fashion-MNIST, {what}", failed(wrong))
                return 0.0
            trained = sum(clock.seconds for clock in clocks) - before
            if trained_file(out).exists():
                trained = float(trained_file(out).read_text())
            return tell_run(what, json.loads((Path(out) / "summary.json").read_text()), trained)

    one = ["--model.name", large, "--replicas.count", "1", "--method", "oneshot", "--epochs", "2", "--device", "cuda"]
    if rate := fit(f"one {large}, 2 epochs", one):
        epochs = round(SLACK * part.left * rate / TRAIN_IMAGES / (START + REPLICAS * (1.0 - START)))
        epochs = few if part.quick else min(MOST, max(LEAST, epochs))
        longer = ["--model.name", large, *many, "--sparsity", "0.95", "--epochs", str(epochs), "--device", "cuda"]
        fit(f"three {large}, {epochs} epochs", longer)
    small = ["--model.name", SMALL, *many, "--epochs", str(few)]
    for executor in ("sequential", "vectorized"):
        fit(f"three {SMALL}, {few} epochs, {executor}", [*small, "--device", "cuda", "--replicas.executor", executor])
    ranks = partial(in_three_ranks, part)
    fit(f"three {SMALL}, {few} epochs, three ranks", [*small, "--device", "cuda:0"], ranks)


def in_three_ranks(part: Part, options: list[str]) -> str:
    """A fit of three ranks on one device; why it failed, or an empty text."""
    return in_ranks("fashion", part, **{OPTIONS: json.dumps(options)})


def trained_file(out: str) -> Path:
    """Where rank 0 leaves the seconds that it trained."""
    return Path(out).with_name("trained")


def in_process(options: list[str]) -> str:
    """A fit in this process; why it failed, or an empty text."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(["fit", *options])
    lines = [line for line in said.getvalue().splitlines() if line.strip()] or [f"exit code {code}"]
    return lines[-1] if code else ""


def tell_run(what: str, summary: dict[str, Any], trained: float) -> float:
    """Tell how a run went; the images a second while it trained."""
    seconds, images = summary["wall_seconds"], summary["images.total"]
    tell(
        f"Fashion-MNIST, {what}", f"{100 * summary['test.accuracy']:.2f} % at {100 * summary['sparsity']:.1f} %",
        "its time", f"{seconds:.1f} s", f"{100 * trained / seconds:.0f} % of it trains", 1,
        accuracy=summary["test.accuracy"], wall=seconds, trained=trained, images=images,
    )  # fmt: skip
    return float(images / trained)
