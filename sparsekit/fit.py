"""`sparsekit fit`: prepare, run, and leave a run directory."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import yaml

from sparsekit import masks, models, states
from sparsekit.config import FitConfig, describe, flatten
from sparsekit.display import Display
from sparsekit.errors import UserError
from sparsekit.planning import table_rows
from sparsekit.replicas import fork
from sparsekit.scheduler import Job, Result, run
from sparsekit.setup import Setup, prepare
from sparsekit.tracking import Tracker


def fit(config: FitConfig) -> dict[str, Any]:
    """Train, prune and merge as configured; returns what summary.json holds.

    Raises:
        UserError: an option is bad; nothing was written.
        RunError: the run failed; summary.json says so.
    """
    began = time.monotonic()
    check_out(config.out)
    setup = prepare(config)
    plain = describe(config)
    out = make_out(config.out, plain)
    (out / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "utf-8")
    write_json(out / "plan.json", setup.plan.to_json())
    summary = {
        "status": "failed",
        "method": plain["method"]["name"],
        "merge": plain["merge"]["name"],
        "seed": config.seed,
        "target_sparsity": config.sparsity,
        "segments": len(setup.stages),
        "out": str(out),
    }
    with Display() as display:
        display.plan(table_rows(setup.plan), setup.plan.critical_epochs, setup.plan.total_epochs)
        display.begin(_total_steps(setup))
        with Tracker(out, config.wandb, flatten(plain), out.name, warn=display.warn) as tracker:
            try:
                job = Job(setup, out, tracker, display)
                result = run(job)
                summary |= finish(setup, result, out) | {"status": "done"}
            finally:
                summary["wall_seconds"] = time.monotonic() - began
                write_json(out / "summary.json", summary)
            tracker.log("done", {k: v for k, v in summary.items() if k not in ("wall_seconds", "out")}, step=job.step)
            tracker.summary(summary)
        display.finish(summary, tracker.wandb_location)
    return summary


def check_out(out: str | None) -> None:
    """Raise UserError where `--out` is not a new or empty directory."""
    path = Path(out) if out is not None else None
    if path and path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; give a new directory")
    if path and path.is_dir() and any(path.iterdir()):
        raise UserError(f"--out {path} is not empty; give a new directory")


def make_out(out: str | None, plain: dict[str, Any]) -> Path:
    """Make the run directory, by default `runs/<method>-<merge>-<time>-<random>`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{plain['method']['name']}-{plain['merge']['name']}-{stamp}-{secrets.token_hex(2)}"
    path = Path(out) if out is not None else Path("runs", name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}; give a directory that can be written") from error
    return path


def finish(setup: Setup, result: Result, out: Path) -> dict[str, Any]:
    """Save the finished model and its masks, read them back, and count.

    Raises:
        RunError: the saved model has a masked weight that is not 0.
    """
    data = setup.data
    setup.model.load_state_dict(result.state.tensors)
    inputs = models.InputConfig(data.channels, data.image_size, data.mean, data.std)
    models.save(setup.model, setup.config.model, inputs, out / "model")
    states.save(out / "masks.safetensors", result.state.masks)
    file = out / "model" / "model.safetensors"
    saved = states.load(file)
    masks.check(saved, result.state.masks, str(file))
    parameters = [saved[name] for name, _ in setup.model.named_parameters()]
    pruned = sum(int((~mask).sum()) for mask in result.state.masks.values())
    total, nonzero = sum(p.numel() for p in parameters), sum(int((p != 0).sum()) for p in parameters)
    summary = {
        "sparsity": masks.sparsity(result.state.masks),
        "model_sparsity": pruned / total,
        "nonzero": nonzero,
        "parameters": total,
        "model_bytes": file.stat().st_size,
        "test.accuracy": result.test.accuracy,
        "test.loss": result.test.loss,
    }
    if len(result.candidates) > 1:
        accuracies = [score.accuracy for score in result.candidates]
        summary["candidates.mean_accuracy"] = sum(accuracies) / len(accuracies)
        summary["candidates.best_accuracy"] = max(accuracies)
    return summary


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path)


def _total_steps(setup: Setup) -> int:
    pairs = zip(setup.stages, setup.steps, strict=True)
    return sum(max(1, round(r.length * n)) for stage, n in pairs if n for r in fork(setup.config, stage))
