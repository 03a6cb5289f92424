"""Mirror metrics.jsonl to one W&B run, from a separate thread that may fail or hang without harm."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit.config.options import WandbConfig
from sparsekit.config.wandb_limits import NAME
from sparsekit.run import wandb_record

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 15.0
"""W&B gets this long to answer before the run is kept offline."""
FINISH_SECONDS = 15.0
"""W&B gets this long to upload what is left at the end; `wandb sync` uploads the rest."""
PATIENCE_SECONDS = 60.0
"""The run waits this long for the mirror's thread; more than the sum of the two limits and W&B's own grace time."""
MODEL_SECONDS = 60.0
"""Uploading the finished model may take this much longer."""

_BEST = {"merge/soup": "max", "merge/soup.loss": "min", "evaluate/test.loss": "min"}
"""Metrics of which W&B's summary also keeps the best value, beside the test score."""


class WandbMirror:
    """One W&B run, fed from a queue by a separate thread.

    Importing and starting W&B takes more than a second, and an unreachable server much longer; training waits for
    neither. Any error ends the mirror with one warning, and never the run.

    Row n of metrics.jsonl is step n of W&B, so W&B ignores the rows that a resumed online run writes a second time.

    Args:
        out: The run directory; W&B's files go to its `wandb/`.
        mode: auto, online or offline.
        options: `--wandb`.
        config: The complete config under flat, dotted names.
        name: Name of the W&B run.
        warn: Called from the mirror's thread with a one-line warning.
        score: The name of the task's score.
    """

    def __init__(
        self,
        out: Path,
        mode: str,
        options: WandbConfig,
        config: Mapping[str, object],
        name: str,
        warn: Callable[[str], None],
        score: str,
    ) -> None:
        self._out, self._mode, self._options, self._config, self._name = out, mode, options, dict(config), name
        self._warn, self._best = warn, {**_BEST, f"evaluate/test.{score}": "max"}
        self._jobs: queue.SimpleQueue[Callable[[wandb.Run], object] | None] = queue.SimpleQueue()
        self._key: str | None = None
        self._first = 0
        self._patience = PATIENCE_SECONDS
        self._known = wandb_record.read(out)
        self._located = threading.Event()
        # A daemon, so that a W&B call that hangs cannot keep the process alive.
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def log(self, number: int, row: Mapping[str, object]) -> None:
        """Mirror a row of metrics.jsonl; `number` is its line, from 0."""
        # without commit=True, W&B holds a step back until the next one begins
        self._jobs.put(lambda run: number >= self._first and run.log(mirrored(row), step=number, commit=True))

    def summary(self, values: Mapping[str, object]) -> None:
        """Mirror the summary."""
        self._jobs.put(lambda run: run.summary.update(dict(values)))

    def page(self, path: Path) -> None:
        """Show an HTML page."""
        self._jobs.put(lambda run: wandb_record.show(run, path))

    def model(self, files: Sequence[Path], metadata: Mapping[str, object], parent: str | None) -> None:
        """Upload a model as an artifact, if the run is online and `--wandb.artifact` is set."""
        if not self._options.artifact:
            return

        def upload(run: wandb.Run) -> None:
            if not run.offline:
                self._patience += MODEL_SECONDS
                name = wandb_record.upload_model(run, files, dict(metadata), parent, MODEL_SECONDS)
                self._known = replace(self._known, artifact=name)
                wandb_record.write(self._out, self._known)

        self._jobs.put(upload)

    def locations(self) -> Sequence[str]:
        """The run's URL and its folders for `wandb sync`; waits for W&B to start."""
        self._located.wait(PATIENCE_SECONDS)
        return self._known.locations(self._out)

    def close(self, exit_code: int, patience: float | None) -> None:
        """Finish the run, and wait for the thread for up to `patience` seconds, or a default limit if None."""
        self._jobs.put(lambda run: run.finish(exit_code=exit_code))
        self._jobs.put(None)
        waited = 0.0
        while self._thread.is_alive() and waited < (allowed := patience or self._patience):
            self._thread.join(min(1.0, allowed - waited))
            waited += 1.0
        if self._thread.is_alive():
            self._warn(f"W&B did not finish within {allowed:.0f} s and is left behind.")

    def _work(self) -> None:
        try:
            run = self._start()
            self._located.set()
            while (job := self._jobs.get()) is not None:
                job(run)
        except (Exception, SystemExit) as error:  # W&B may raise anything, and does
            self._warn(f"W&B stopped ({self._brief(error)}); metrics.jsonl has every row.")
        finally:
            self._located.set()

    def _start(self) -> wandb.Run:
        import wandb

        # Only the process-wide setting keeps W&B from printing a greeting and from asking for a key.
        online = {"mode": "online"} if self._mode == "online" else {}
        settings = wandb.setup(_settings(silent=True, **online)).settings
        # W&B's own settings may be offline, after `wandb offline`.
        mode = settings.mode if self._mode == "auto" else self._mode
        if mode == "online" and not _logged_in():
            if self._mode == "online":
                self._warn("W&B has no API key here (`wandb login` stores one); this run is kept offline.")
            mode = "offline"
        self._key = settings.api_key
        try:
            run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._warn(f"W&B cannot be used online ({self._brief(error)}); this run is kept offline.")
            run = self._init("offline")
        # Charts use our step as their axis: W&B's step counts rows.
        run.define_metric("*", step_metric="step")
        for axis in ("step", "segment"):
            run.define_metric(axis, hidden=True)
        for name, best in self._best.items():
            run.define_metric(name.replace(".", r"\."), step_metric="step", summary=f"last,{best}")
        self._first = 0 if run.offline else run.step
        self._known = wandb_record.updated(self._known, run, self._out)
        wandb_record.write(self._out, self._known)
        return run

    def _init(self, mode: str) -> wandb.Run:
        import wandb

        options, known_id = self._options, self._known.id
        # A sweep agent sets the run's id, also when it hands out an interrupted run again.
        agent_id = os.environ.get("WANDB_RUN_ID")
        # An option that was given overrides W&B's environment; a default does not. A sweep's own project always wins.
        default = options.project == WandbConfig().project
        with _launcher_left_alone():
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", options.project) if default else options.project,
                name=os.environ.get("WANDB_NAME", self._name[:NAME]),
                group=options.group,
                tags=options.tags or None,
                notes=options.notes,
                job_type=options.job_type,
                id=None if agent_id else known_id,
                resume="allow" if known_id and agent_id in (None, known_id) else None,
                dir=self._out,
                config=self._config,
                mode=mode,  # type: ignore[arg-type]
                settings=_settings(
                    # Leaves a W&B run that this process has open already alone.
                    reinit="create_new",
                    # Print nothing, and record only the rows: no console output, machine statistics or code.
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                    # By default rows reach the disk every 15 s, and a killed run loses the last ones.
                    x_transaction_log_flush_interval=0.1,
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )

    def _brief(self, error: BaseException) -> str:
        """The first line of an error, without the API key."""
        text = next(iter(str(error).splitlines()), "")
        text = text.replace(self._key, "***") if self._key else text
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _logged_in() -> bool:
    """Whether W&B finds credentials by its own rules; asks neither the user nor a server."""
    import wandb

    # while a run is open in this process, `wandb.login` always returns False; without credentials `wandb.init` fails
    return wandb.run is not None or wandb.login(prompt=False, verify=False)


@contextmanager
def _launcher_left_alone() -> Iterator[None]:
    """Keep `wandb.init` from importing W&B's launcher, which takes half a second of CPU time (W&B 0.31).

    `wandb.init` looks for inputs staged for the launcher, which only a process that imported the launcher can have.
    """
    import wandb

    name, run = "_detect_and_apply_job_inputs", getattr(wandb, "Run", None)
    original = getattr(run, name, None)
    if original is None or "wandb.sdk.launch" in sys.modules:
        yield
        return
    setattr(run, name, lambda self: None)
    try:
        yield
    finally:
        setattr(run, name, original)


def mirrored(row: Mapping[str, object]) -> dict[str, object]:
    """The numbers of a row of metrics.jsonl under W&B's names: `replica/0/loss`, `candidate/0/accuracy`, `merge/soup`.

    `step` is an ordinary field that charts use as their axis: W&B's own step must always grow, but the replicas of a
    segment go through the same steps one after another.
    """
    prefix = str(row["event"])
    if "replica" in row:
        prefix = f"{'replica' if prefix == 'train' else prefix}/{row['replica']}"
    axes = {key: row[key] for key in ("step", "segment") if key in row}
    values = {key: value for key, value in row.items() if key not in {"event", "replica", *axes}}
    return axes | dict(_numbers(prefix, values))


def _numbers(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, int | float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{key}", value


def _settings(**values: Any) -> wandb.Settings:
    """W&B settings, without those that the installed version does not know."""
    import wandb

    return wandb.Settings(**{key: value for key, value in values.items() if key in wandb.Settings.model_fields})
