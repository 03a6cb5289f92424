"""Runs of the command line that a real signal stops, in this process, and what must be equal once they went on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from sparsekit.cli.main import main
from sparsekit.training.replica import Training

TINY = ["--epochs", "6", "--replicas.count", "2", "--data.image_size", "8"]
TINY += ["--model.kwargs", "{channels: [8, 8, 16, 16]}"]
QUIET = ["--wandb.mode", "disabled", "--evaluation.report", "false"]


def fit(out: Path, *options: str) -> int:
    return main(["fit", *TINY, *QUIET, "--out", str(out), *options])


def strike(monkeypatch: pytest.MonkeyPatch, steps: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a certain training step, counted over the run."""
    done, step = 0, Training.step

    def counted(self: Training, *batch: object) -> None:
        nonlocal done
        step(self, *batch)  # type: ignore[arg-type]
        done += 1
        if done == steps:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Training, "step", counted)


def contents(out: Path) -> dict[str, object]:
    """What must be equal: weights, masks, every metrics row but times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": (out / "model" / "model.safetensors").read_bytes(),
        "masks": (out / "masks.safetensors").read_bytes(),
        "rows": rows,
    }
