"""`sparsekit fit`: prepare, run, and leave a run directory."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from sparsekit.config.options import FitConfig, describe, flatten
from sparsekit.display.live import Display
from sparsekit.errors import RunError, UserError
from sparsekit.executors import choose, torchrun
from sparsekit.planning.plan import table_rows
from sparsekit.planning.replicas import fork
from sparsekit.run import directory as rundir
from sparsekit.run import finish as closing
from sparsekit.run import progress as places
from sparsekit.run.checkpoint import Damaged, Keeper, StoredFile
from sparsekit.run.context import Job
from sparsekit.run.loop import run, start
from sparsekit.run.metrics_log import Rows, Tracker
from sparsekit.run.signals import Stopped, StopSignals
from sparsekit.run.wandb_record import summary_metadata
from sparsekit.training import threads
from sparsekit.training.ranks import Ranks
from sparsekit.training.setup import Setup, prepare
from sparsekit.training.team import gathered, make_team


def fit(config: FitConfig) -> dict[str, Any]:
    """Train, prune and merge as configured, or go on with a run; returns what summary.json holds.

    Raises:
        UserError: an option is bad; nothing was written.
        RunError: the run failed; summary.json says so, checkpoints stay.
        Stopped: a signal ended it; a checkpoint is kept.
    """
    began = time.monotonic()
    plain = describe(config)
    ranks = Ranks.here()
    if not ranks.leads:
        return follow(config, ranks)
    out, goes_on = rundir.choose(config.out, config.resume, plain)
    if goes_on and (done := rundir.finished(out)):
        Display().note(f"{out}: this run is done")
        ranks.tell("run", None)
        return done
    with StopSignals() as signals:
        with signals.minded():
            setup = join(prepare(config), ranks)  # without waiting for anyone
        for rank in ranks.others:
            if wrong := ranks.ask(f"ready/{rank}", rank):
                raise UserError(f"rank {rank}: {wrong}")
        with rundir.locked(out), Display() as display:
            ranks.tell("run", str(out.absolute()))
            setup = replace(setup, team=gathered(setup.team, ranks, setup.device))
            try:
                summary = _run(setup, plain, out, goes_on, began, display, signals, ranks)
            except Stopped as stop:
                stop.out = str(out)
                raise
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{_file_error(error, out)}; checkpoints that were finished before are intact"
                ) from error
    return summary


def follow(config: FitConfig, ranks: Ranks) -> dict[str, Any]:
    """A rank that does not lead: it trains its share, and what it has to say goes through the leader."""
    with StopSignals() as signals:
        try:
            with signals.minded():
                setup = join(prepare(config), ranks)
        except UserError as error:
            ranks.tell(f"ready/{ranks.rank}", str(error))
            raise
        ranks.tell(f"ready/{ranks.rank}", "")
        if out := ranks.ask("run"):
            setup = replace(setup, team=gathered(setup.team, ranks, setup.device))
            with signals.minded():
                executor, _ = choose(setup)
            rows, keeper = Rows(ranks.rank), Keeper(Path(out) / "checkpoints", torchrun.prefix(ranks.rank))
            with Path(os.devnull).open("w") as nowhere, Display(Console(file=nowhere)) as display:
                job = Job(setup, rows, display, keeper, executor, signals, config.checkpoint.minutes)
                job.header = lambda: {"rows": rows.rows}
                try:
                    torchrun.follow(job, ranks, executor)
                except (OSError, SafetensorError) as error:
                    raise RunError(f"rank {ranks.rank}: {_file_error(error, Path(out))}") from error
    return {}


def join(setup: Setup, ranks: Ranks) -> Setup:
    """The setup with this rank's team."""
    if ranks.size == 1:
        return setup
    replicas = max(len(fork(setup.config, stage)) for stage in setup.stages)
    config = setup.config
    team = make_team(ranks, replicas, config.data.batch_size, config.replicas.sync_batchnorm, setup.device)
    return replace(setup, team=team)


def _run(
    setup: Setup,
    plain: dict[str, Any],
    out: Path,
    goes_on: bool,
    began: float,
    display: Display,
    signals: StopSignals,
    ranks: Ranks,
) -> dict[str, Any]:
    """The run inside its locked directory, to its result on the screen; its summary."""
    config, keeper = setup.config, Keeper(out / "checkpoints")
    with signals.deferred():  # what a signal breaks off here would look like a damaged checkpoint
        body, place = _origin(setup, plain, out, goes_on, keeper, display)
    signals.stop()
    with signals.minded():  # and here like a model that vmap cannot take
        executor, why = choose(setup)
    if why:
        display.note(why)
    leader = torchrun.Leader(ranks, executor)
    if setup.device.type == "cpu" and (slow := threads.crowded()):
        display.warn(slow)
    display.begin(_steps_left(setup, place))
    summary = closing.begun(setup, plain, out)

    def seconds() -> float:
        return float(body["seconds"]) + time.monotonic() - began

    rank = ranks.rank if ranks.size > 1 else None
    with Tracker(
        out, config.wandb, flatten(plain), out.name, warn=display.warn, offset=body["metrics"], rank=rank
    ) as tracker:
        job = Job(setup, tracker, display, keeper, executor, signals, config.checkpoint.minutes)
        job.header = lambda: {"metrics": tracker.offset, "seconds": seconds(), "threads": torch.get_num_threads()}
        if ranks.size > 1:
            job.executor = leader
        try:
            with signals.minded():
                place = torchrun.absorb_all(job, place, body.get("ordered"), display.warn)
                result = run(job, place)
                leader.finish()
                summary |= closing.finish(setup, result, out)
                done = summary | {"status": "done"}
                row = {key: value for key, value in done.items() if key not in closing.MEASURED_ANEW}
                tracker.log("done", row, step=sum(setup.steps))  # before summary.json, which ends the run for good
                tracker.summary(done | {"wall_seconds": seconds()})
                tracker.model((out / "model", out / "masks.safetensors"), summary_metadata(done), config.model.name)
                summary = done
        except Stopped:
            summary["status"] = "stopped"
            raise
        finally:
            summary["wall_seconds"] = seconds()
            with suppress(OSError):  # where the disk is full, the first error is the one to tell
                rundir.write_json(out / "summary.json", summary)
        keeper.clear()
        page = {"report": str(closing.page_of(out))} if config.evaluation.report else {}
        display.finish(summary | page, tracker.wandb_locations)
        # when the result is on the screen and nothing can go wrong any more
        if config.evaluation.report and (written := closing.write_report(out, display)):
            tracker.page(written)
    return summary


def _origin(
    setup: Setup, plain: dict[str, Any], out: Path, goes_on: bool, keeper: Keeper, display: Display
) -> tuple[dict[str, Any], places.Place]:
    """What the last sound checkpoint says, and its place; without one the beginning, with config and plan written."""
    fresh = start(setup)

    def read(body: dict[str, Any], files: dict[str, StoredFile]) -> tuple[dict[str, Any], places.Place]:
        if not {"metrics", "seconds"} <= body.keys():
            raise Damaged("it does not say what was done")
        return body, places.restore(keeper, fresh.parent, len(setup.stages), body, files)

    if found := keeper.restored(display.warn, read) if goes_on else None:
        body, place = found
        if body["metrics"] > rundir.size(out / "metrics.jsonl"):
            raise RunError(
                f"{out / 'metrics.jsonl'} lacks rows that were there; put it back, or start anew in another --out"
            )
        display.note(f"{out}: going on in segment {place.segment + 1} of {len(setup.stages)}")
        if setup.device.type == "cpu" and (differs := threads.changed(body.get("threads"))):
            display.warn(differs)
        return found
    if setup.config.resume:
        lacks = "no checkpoint" if goes_on else "no run there"
        display.note(f"{out}: {lacks} to go on from; starting at the beginning")
    rundir.write_yaml(out / "config.yaml", plain)
    rundir.write_json(out / "plan.json", setup.plan.to_json())
    display.plan(table_rows(setup.plan), setup.plan.critical_epochs, setup.plan.total_epochs)
    return {"metrics": 0, "seconds": 0.0}, fresh


def _file_error(error: Exception, out: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or out}: {error.strerror}"
    return f"{out}: {error}"


def _steps_left(setup: Setup, place: places.Place) -> int:
    """Optimizer steps that are left to do, over all replicas."""
    left = list(zip(setup.stages, setup.steps, strict=True))[place.segment :]
    lengths = [[r.steps(n) for r in fork(setup.config, stage)] if n else [] for stage, n in left]
    return sum(sum(each) for each in lengths) - sum(lengths[0][index] for index in place.finished)
