"""One run from its configuration to its summary: prepare, start or resume, main loop, finish."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from sparsekit.config.options import FitConfig, describe, flatten
from sparsekit.config.sweep_values import check_agent
from sparsekit.config.wandb_limits import check_environment
from sparsekit.display.live import Display
from sparsekit.errors import RunError, UserError
from sparsekit.executors import choose_executor, executor_name, torchrun
from sparsekit.files import digest, write_json, write_yaml
from sparsekit.models import device
from sparsekit.planning.plan import summarize, table_rows
from sparsekit.plugins.objects import is_object
from sparsekit.run import directory, finish, images, progress
from sparsekit.run.checkpoint import CheckpointStore, Damaged, StoredFile
from sparsekit.run.context import RunContext
from sparsekit.run.loop import run
from sparsekit.run.metrics_log import Rows, Tracker
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.run.signals import Stopped, StopSignals
from sparsekit.run.wandb_record import summary_metadata
from sparsekit.training.prepare import prepare
from sparsekit.training.ranks import Ranks
from sparsekit.training.setup import Setup
from sparsekit.training.team import with_process_group


@dataclass(frozen=True)
class Launch:
    """What a call of `fit` works with besides its setup.

    Attributes:
        out: The run directory.
        resumes: Whether the directory holds a run to resume.
        display: Shows the run to the user.
        signals: Stop requests.
        ranks: The processes of this run.
        began: When the call began, in seconds of the monotonic clock.
    """

    out: Path
    resumes: bool
    display: Display
    signals: StopSignals
    ranks: Ranks
    began: float


@dataclass
class Start:
    """Where a call of `fit` starts or resumes its run.

    Attributes:
        at: The run's progress, until `take`.
        metrics: Size of metrics.jsonl in bytes at that progress.
        seconds: Wall time of earlier calls.
        executor: Name of the executor of the call that wrote the checkpoint; empty if it does not say.
    """

    at: RunProgress | None
    metrics: int = 0
    seconds: float = 0.0
    executor: str = ""

    def take(self) -> RunProgress:
        """Hand the progress over: what is kept here, its parent too, would stay in memory to the end."""
        assert self.at is not None
        at, self.at = self.at, None
        return at


@device.enough_memory(
    "lower --data.batch_size or --data.image_size, or set --replicas.executor sequential or --precision bf16; "
    "checkpoints that were finished before are intact"
)
def fit(config: FitConfig, display: Display | None = None) -> dict[str, Any]:
    """Train, prune and merge as configured, or resume a run.

    Args:
        config: The options.
        display: Shows the run; by default on the terminal.

    Returns:
        The content of summary.json; `out` alone on ranks other than the leader.

    Raises:
        UserError: an option is bad; nothing was written.
        RunError: the run failed; summary.json has the status `failed`, and checkpoints are kept.
        Stopped: a signal stopped the run; a checkpoint is kept.
    """
    began, exits, display = time.monotonic(), display is None, display or Display()
    check_agent(flatten(describe(config)))
    check_environment(config.wandb)
    ranks = Ranks.here()
    if not ranks.leads:
        return follow(config, ranks, exits)
    earlier = ranks.earlier_run()
    out, resumes = directory.choose(earlier or config.out, config.resume or earlier is not None, describe(config))
    if resumes and (done := directory.finished(out)):
        display.note(f"{out}: this run is done")
        ranks.tell("run", None)
        return done
    with StopSignals(exits) as signals:
        ranks.stop = signals.stop
        with signals.reraise_if_swallowed():
            setup = _prepare(config, ranks)  # no rank waits for another here
        own = images.digest(setup.data.contents) if ranks.size > 1 else ""
        for rank in ranks.others:
            wrong, others = ranks.ask(f"ready/{rank}", rank)
            if wrong:
                raise UserError(f"rank {rank}: {wrong}")
            if others != own:
                raise UserError(
                    f"rank {rank}: its images in --data.root are not rank 0's; give every node the same files"
                )
        with directory.locked(out), display:
            ranks.remember_run(str(out.absolute()))
            ranks.tell("run", str(out.absolute()))
            setup = replace(setup, team=with_process_group(setup.team, ranks, setup.device))
            try:
                return _run(setup, Launch(out, resumes, display, signals, ranks, began))
            except Stopped as stop:
                stop.out = str(out)
                raise
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{_file_error(error, out)}; checkpoints that were finished before are intact"
                ) from error


def follow(config: FitConfig, ranks: Ranks, exits: bool = True) -> dict[str, Any]:
    """Run a rank other than the leader, which trains its share of replicas and reports through the leader."""
    with StopSignals(exits) as signals:
        ranks.stop = signals.stop
        try:
            with signals.reraise_if_swallowed():
                setup = _prepare(config, ranks)
        except UserError as error:
            ranks.tell(f"ready/{ranks.rank}", (str(error), ""))
            raise
        ranks.tell(f"ready/{ranks.rank}", ("", images.digest(setup.data.contents)))
        out: str | None = ranks.ask("run")
        if out:
            setup = replace(setup, team=with_process_group(setup.team, ranks, setup.device))
            with signals.reraise_if_swallowed():
                executor, _ = choose_executor(setup)
            rows = Rows(ranks.rank)
            checkpoints = CheckpointStore(Path(out) / "checkpoints", torchrun.prefix(ranks.rank))
            with Path(os.devnull).open("w") as nowhere, Display(Console(file=nowhere)) as display:
                context = RunContext(
                    setup, rows, display, checkpoints, executor, signals, config.checkpoint.minutes,
                    header=lambda: {"rows": rows.rows},
                )  # fmt: skip
                try:
                    torchrun.follow(context, ranks)
                except (OSError, SafetensorError) as error:
                    raise RunError(f"rank {ranks.rank}: {_file_error(error, Path(out))}") from error
    return {"out": out} if out else {}


@device.enough_memory("lower --data.batch_size or --data.image_size, or set --precision bf16", UserError)
def _prepare(config: FitConfig, ranks: Ranks) -> Setup:
    """The setup of this rank; raises UserError where one training step of it does not fit into the device's memory."""
    return prepare(config, ranks=ranks)


def _run(setup: Setup, launch: Launch) -> dict[str, Any]:
    """Run in the locked run directory, and show the result; returns the summary."""
    config, out, display, signals = setup.config, launch.out, launch.display, launch.signals
    checkpoints = CheckpointStore(out / "checkpoints")
    display.notes(setup.data.contents.lines())
    with signals.deferred():  # an interrupted read would look like a damaged checkpoint
        fresh = first_progress(setup)
        start = _resume(setup, launch, checkpoints, fresh) or _begin(setup, launch, fresh)
        del fresh
    for note in setup.notes:
        display.note(note)
    for warning in setup.warnings:
        display.warn(warning)
    signals.stop()
    with signals.reraise_if_swallowed():  # an interrupted trial of vmap would look like a model that it cannot handle
        executor, why = choose_executor(setup)
    if why:
        display.note(why)
    if start.executor not in ("", trained := executor_name(executor)):
        display.warn(
            f"its replicas were trained {start.executor} before, and {trained} now: weights will differ in rounding, "
            "and dropout draws other numbers"
        )
    leader = torchrun.Leader(launch.ranks, executor)
    alone = launch.ranks.size == 1
    if setup.device.type == "cpu" and (slow := device.crowded_threads()):
        display.warn(slow)
    assert start.at is not None
    display.begin(_steps_left(setup, start.at))
    options, summary = flatten(describe(config)), finish.initial_summary(setup, out)

    def seconds() -> float:
        return start.seconds + time.monotonic() - launch.began

    rank = None if alone else launch.ranks.rank
    with Tracker(
        out, config.wandb, options, out.name,
        warn=display.warn, offset=start.metrics, rank=rank, score=setup.task.score_name,
    ) as tracker:  # fmt: skip
        context = RunContext(
            setup, tracker, display, checkpoints, executor if alone else leader, signals, config.checkpoint.minutes,
            header=lambda: {
                "metrics": tracker.offset, "seconds": seconds(), "threads": torch.get_num_threads(), "executor": trained
            },
        )  # fmt: skip
        try:
            with signals.reraise_if_swallowed():
                result = run(context, torchrun.add_interrupted_results(context, start.take()))
                leader.finish()
                setup.team.leave()
                summary |= finish.finish(setup, result, out)
                for warning in finish.warnings(setup, summary):
                    display.warn(warning)
                done = summary | {"status": "done"}
                row = {key: value for key, value in done.items() if key not in finish.NOT_REPRODUCIBLE}
                # before summary.json: once its status is `done`, the run is never resumed
                tracker.log("done", row, step=sum(segment.steps for segment in setup.plan))
                tracker.summary(done | {"wall_seconds": seconds()})
                tracker.model((out / "model", out / "masks.safetensors"), summary_metadata(done), config.model.name)
                summary = done
        except Stopped:
            checkpoints.wait()
            summary["status"] = "stopped"
            raise
        finally:
            with suppress(OSError, SafetensorError):  # nothing may be written any longer once the lock is released
                checkpoints.wait()
            summary["wall_seconds"] = seconds()
            with suppress(OSError):  # if the disk is full, report the first error
                write_json(out / "summary.json", summary)
        checkpoints.clear()
        page = {"report": str(finish.page_of(out))} if config.evaluation.report else {}
        display.finish(summary | page, tracker.wandb_locations)
        # after the result is on the screen, so that a failure here loses nothing
        if config.evaluation.report and (written := finish.write_report(out, display)):
            tracker.page(written)
    return summary


def _resume(setup: Setup, launch: Launch, checkpoints: CheckpointStore, fresh: RunProgress) -> Start | None:
    """Resume from the newest undamaged checkpoint; None without one.

    Raises:
        UserError: the images or the user's own model are not those that the run was started with.
        RunError: all checkpoints are damaged, or rows of metrics are missing.
    """
    out, display = launch.out, launch.display

    def read(body: dict[str, Any], files: dict[str, StoredFile]) -> tuple[dict[str, Any], RunProgress]:
        if not {"metrics", "seconds"} <= body.keys():
            raise Damaged("it does not say what was done")
        return body, progress.restore(checkpoints, fresh.parent, len(setup.plan), body, files)

    if launch.resumes and (other := _own_model(setup, fresh)):
        began = directory.read_plan(out).get("model", other["model"])
        if began != other["model"]:
            raise UserError(
                f"--resume: {out} was started with another --model.name {began['name']}, or other first weights; give "
                "the same, or another --out"
            )
    found = checkpoints.restored(display.warn, read) if launch.resumes else None
    if found is None:
        if setup.config.resume:
            lacks = "no checkpoint" if launch.resumes else "no run"
            display.note(f"{out}: {lacks} to resume from; starting at the beginning")
        return None
    body, at = found
    if unknown := images.check(out, setup.data.contents):
        display.warn(unknown)
    if body["metrics"] > directory.size(out / "metrics.jsonl"):
        raise RunError(
            f"{out / 'metrics.jsonl'} lacks rows from before the checkpoint; restore it, or start with another --out"
        )
    display.note(f"{out}: resuming in segment {at.segment + 1} of {len(setup.plan)}")
    if setup.device.type == "cpu" and (differs := device.changed_threads(body.get("threads"))):
        display.warn(differs)
    return Start(at, body["metrics"], float(body["seconds"]), str(body.get("executor", "")))


def _begin(setup: Setup, launch: Launch, fresh: RunProgress) -> Start:
    """Start a new run: write config.yaml, plan.json and data.json.gz, and show the plan."""
    plan = summarize(setup.config, setup.plan)
    write_yaml(launch.out / "config.yaml", describe(setup.config))
    about = {"score": setup.task.score_name, "data": setup.data.contents.to_json()}
    write_json(launch.out / "plan.json", plan.to_json() | about | _own_model(setup, fresh))
    images.write(launch.out, setup.data.contents)
    launch.display.plan(table_rows(plan), plan.critical_epochs, plan.total_epochs)
    return Start(fresh)


def _own_model(setup: Setup, fresh: RunProgress) -> dict[str, Any]:
    """The entry of plan.json about a model that is no timm model: its name and the digest of its first weights."""
    name = setup.config.model.name
    return {"model": {"name": name, "digest": digest(fresh.parent.tensors)}} if is_object(name) else {}


def _file_error(error: Exception, out: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or out}: {error.strerror}"
    return f"{out}: {error}"


def _steps_left(setup: Setup, at: RunProgress) -> int:
    """Remaining optimizer steps of all replicas."""
    lengths = [segment.lengths for segment in setup.plan[at.segment :]]
    return sum(sum(each) for each in lengths) - sum(lengths[0][index] for index in at.finished)
