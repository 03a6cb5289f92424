"""`sparsekit fit`: prepare, run, and leave a run directory."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sparsekit import closing, cost, masks, models, places, rundir, states
from sparsekit.checkpoint import Keeper
from sparsekit.config import FitConfig, describe, flatten
from sparsekit.display import Display
from sparsekit.errors import RunError
from sparsekit.planning import table_rows
from sparsekit.replicas import fork
from sparsekit.scheduler import Job, Result, run, start
from sparsekit.setup import Setup, prepare
from sparsekit.stopping import Stopped, StopSignals
from sparsekit.tracking import Tracker

MEASURED_ANEW = ("wall_seconds", "out", "latency.seconds")
"""What differs from one run to the same run again; metrics.jsonl, where all is the same, does without it."""


def fit(config: FitConfig) -> dict[str, Any]:
    """Train, prune and merge as configured, or go on with a run; returns what summary.json holds.

    Raises:
        UserError: an option is bad; nothing was written.
        RunError: the run failed; summary.json says so, checkpoints stay.
        Stopped: a signal ended it; a checkpoint is kept.
    """
    began = time.monotonic()
    plain = describe(config)
    out, goes_on = rundir.choose(config.out, config.resume, plain)
    if goes_on and (done := rundir.finished(out)):
        Display().note(f"{out}: this run is done")
        return done
    with StopSignals() as signals:
        setup = prepare(config)
        with rundir.locked(out), Display() as display:
            summary, wandb = _run(setup, plain, out, goes_on, began, display, signals)
            display.finish(summary, wandb)
    if config.evaluation.report:  # when the result is on the screen and nothing can go wrong any more
        closing.write_report(out, display)
    return summary


def _run(
    setup: Setup, plain: dict[str, Any], out: Path, goes_on: bool, began: float, display: Display, signals: StopSignals
) -> tuple[dict[str, Any], str | None]:
    """The run inside its locked directory; its summary, and where W&B has it."""
    config, keeper = setup.config, Keeper(out / "checkpoints")
    found = keeper.newest(display.warn) if goes_on else None
    body: dict[str, Any] = found[0] if found else {"metrics": 0, "seconds": 0.0}
    place = places.restore(keeper, *found, setup.prunable) if found else start(setup)
    if found:
        display.note(f"{out}: going on in segment {place.segment + 1} of {len(setup.stages)}")
    else:
        if config.resume:
            display.note(f"{out}: no checkpoint to go on from; starting at the beginning")
        rundir.write_yaml(out / "config.yaml", plain)
        rundir.write_json(out / "plan.json", setup.plan.to_json())
        display.plan(table_rows(setup.plan), setup.plan.critical_epochs, setup.plan.total_epochs)
    display.begin(_steps_left(setup, place))
    summary = _summary(setup, plain, out)

    def seconds() -> float:
        return float(body["seconds"]) + time.monotonic() - began

    with Tracker(out, config.wandb, flatten(plain), out.name, warn=display.warn, offset=body["metrics"]) as tracker:
        job = Job(setup, tracker, display, keeper, signals, config.checkpoint.minutes)
        job.header = lambda: {"metrics": tracker.offset, "seconds": seconds()}
        try:
            result = run(job, place)
            summary |= finish(setup, result, out) | {"status": "done"}
        except Stopped as stop:
            stop.out, summary["status"] = str(out), "stopped"
            raise
        except (OSError, SafetensorError) as error:
            raise RunError(f"{_file_error(error, out)}; checkpoints that were finished before are intact") from error
        finally:
            summary["wall_seconds"] = seconds()
            with suppress(OSError):  # where the disk is full, the first error is the one to tell
                rundir.write_json(out / "summary.json", summary)
        row = {key: value for key, value in summary.items() if key not in MEASURED_ANEW}
        tracker.log("done", row, step=sum(setup.steps))
        tracker.summary(summary)
    keeper.clear()
    return summary, tracker.wandb_location


def _summary(setup: Setup, plain: dict[str, Any], out: Path) -> dict[str, Any]:
    """What summary.json says from the start."""
    return {
        "status": "failed",
        "method": plain["method"]["name"],
        "merge": plain["merge"]["name"],
        "seed": setup.config.seed,
        "target_sparsity": setup.config.sparsity,
        "segments": len(setup.stages),
        "out": str(out),
    }


def _file_error(error: Exception, out: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or out}: {error.strerror}"
    return f"{out}: {error}"


def finish(setup: Setup, result: Result, out: Path) -> dict[str, Any]:
    """Save the finished model and its masks, read them back, and count.

    Raises:
        RunError: the saved model has a masked weight that is not 0.
    """
    data = setup.data
    setup.model.load_state_dict(result.state.tensors)
    measured = closing.measure(setup, result.state.masks, out)
    inputs = models.InputConfig(data.channels, data.image_size, data.mean, data.std)
    models.save(setup.model, setup.config.model, inputs, out / "model")
    states.save(out / "masks.safetensors", result.state.masks)
    file = out / "model" / "model.safetensors"
    states.share(file)
    saved = states.load(file)
    masks.check(saved, result.state.masks, str(file))
    parameters = [saved[name] for name, _ in setup.model.named_parameters()]
    pruned = sum(int((~mask).sum()) for mask in result.state.masks.values())
    sizes = cost.sizes(parameters, result.state.masks, file)
    summary: dict[str, Any] = {
        "sparsity": masks.sparsity(result.state.masks),
        "model_sparsity": pruned / sizes["parameters"],
        **sizes,
        "model_bytes": sizes["bytes.disk"],
        "test.accuracy": result.test.accuracy,
        "test.loss": result.test.loss,
    }
    if result.candidates:
        accuracies = [score.accuracy for score in result.candidates]
        summary["candidates.count"] = len(accuracies)
        summary["candidates.mean_accuracy"] = sum(accuracies) / len(accuracies)
        summary["candidates.best_accuracy"] = max(accuracies)
    return measured | summary


def _steps_left(setup: Setup, place: places.Place) -> int:
    """Optimizer steps that are left to do, over all replicas."""
    left = list(zip(setup.stages, setup.steps, strict=True))[place.segment :]
    lengths = [[max(1, round(r.length * n)) for r in fork(setup.config, stage)] if n else [] for stage, n in left]
    return sum(sum(each) for each in lengths) - sum(sum(each[: place.finished]) for each in lengths[:1])
