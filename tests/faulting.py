"""Real `sparsekit fit` processes for the fault suite, and what they have written so far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS = ["--epochs", "12", "--replicas.count", "2", "--model.kwargs", "{channels: [8, 8, 16, 16]}"]
OFTEN = ["--checkpoint.minutes", "0.005", "--wandb.mode", "disabled"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(out: Path, *options: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sparsekit", "fit", *OPTIONS, *OFTEN, "--out", str(out), *options],
        env=ENV,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
    )


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Until the run has written so many rows, or has ended."""
    while process.poll() is None and (not (out / "metrics.jsonl").exists() or len(rows(out)) < count):
        time.sleep(0.05)
