"""What a run records: `metrics.jsonl`, the truth, and W&B, its mirror. No account or network is ever needed."""

from __future__ import annotations

import json
import math
import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sparsekit.config import WandbConfig
from sparsekit.stopping import Stopped

if TYPE_CHECKING:
    import wandb

_INIT_SECONDS = 15.0
"""W&B gets this long to answer before the run is kept offline."""
_FINISH_SECONDS = 15.0
"""W&B gets this long for what is not uploaded yet; `wandb sync` uploads the rest."""
_PATIENCE_SECONDS = 60.0
"""The mirror is left alone after this long, whatever keeps it; above the sum of the two and W&B's own grace."""
_STOP_SECONDS = 4.0
"""And this long where a signal ends the run, which leaves 10 s for everything."""

_CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Two names of one service; `wandb login` has written netrc entries under either."""


class Tracker:
    """The rows of one run, written to `metrics.jsonl` and mirrored to one W&B run. A context manager.

    Args:
        out: The run directory; W&B's files go to its `wandb/`.
        wandb_config: `--wandb`.
        run_config: The complete config under flat, dotted names.
        name: Name of the W&B run.
        warn: Takes the one line said when W&B cannot be used. It is called from another thread.
        offset: Size in bytes to which metrics.jsonl is cut first; see the attribute of the same name.
        rank: Goes into the rows of replicas, where there are several ranks.
    """

    def __init__(
        self,
        out: Path,
        wandb_config: WandbConfig,
        run_config: Mapping[str, object],
        name: str,
        *,
        warn: Callable[[str], None],
        offset: int = 0,
        rank: int | None = None,
    ) -> None:
        self._rank = rank
        self._file = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self._file.truncate(offset)  # rows after the checkpoint from which a run goes on are written again
        mode = wanted_mode(wandb_config.mode)
        self._mirror = (
            None if mode == "disabled" else WandbMirror(out, mode, wandb_config.project, run_config, name, warn)
        )

    def log(
        self,
        event: str,
        values: Mapping[str, object] | None = None,
        *,
        step: int,
        segment: int | None = None,
        replica: int | None = None,
    ) -> None:
        """Write one row at once.

        Args:
            event: What happened: `train`, `segment`, `candidate`, `merge`, `evaluate`, `done`, ….
            values: Plain JSON values; NaN and infinity are written as null.
            step: Optimizer steps along the critical path.
            segment: The segment's number, where there is one.
            replica: The replica's number, where there is one.
        """
        where = {"step": step, "segment": segment, "replica": replica}
        where["rank"] = self._rank if replica is not None else None
        row = {"event": event, **{key: value for key, value in where.items() if value is not None}}
        self.extend([row | {key: _finite(value) for key, value in (values or {}).items()}])

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows that are made already."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
            if self._mirror:
                self._mirror.log(mirrored(row))

    @property
    def offset(self) -> int:
        """Size of metrics.jsonl in bytes, with every row so far; they are on the disk, for a checkpoint tells it."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def summary(self, values: Mapping[str, object]) -> None:
        """Put values into the W&B run's summary."""
        if self._mirror:
            self._mirror.summary({key: value for key, value in values.items() if _finite(value) is not None})

    @property
    def wandb_location(self) -> str | None:
        """The W&B run's URL, or offline the folder for `wandb sync`; None without W&B. May wait for W&B to start."""
        return self._mirror.location() if self._mirror else None

    def close(self, exit_code: int = 0, patience: float = _PATIENCE_SECONDS) -> None:
        """Close the file and finish the W&B run, waiting for its upload within limits, `patience` seconds at most."""
        self._file.close()
        if self._mirror:
            self._mirror.close(exit_code, patience)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hurried = kind is not None and issubclass(kind, Stopped)
        self.close(0 if kind is None else 1, _STOP_SECONDS if hurried else _PATIENCE_SECONDS)


class Rows(Tracker):
    """The rows of a rank that does not lead: they wait for the leader to write them.

    Attributes:
        rows: What was logged.
    """

    def __init__(self, rank: int) -> None:
        self._rank, self.rows = rank, list[Mapping[str, object]]()

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Keep rows."""
        self.rows.extend(rows)


class WandbMirror:
    """One W&B run, fed from a queue by a thread of its own.

    Importing and starting W&B takes more than a second, and an unreachable server much longer; training waits for
    neither. Whatever goes wrong ends the mirror with one warning and never the run.
    """

    def __init__(
        self,
        out: Path,
        mode: str,
        project: str,
        config: Mapping[str, object],
        name: str,
        warn: Callable[[str], None],
    ) -> None:
        self._out, self._mode, self._project, self._config, self._name = out, mode, project, dict(config), name
        self._warn = warn
        self._jobs: queue.SimpleQueue[Callable[[wandb.Run], object] | None] = queue.SimpleQueue()
        self._keys: list[str] = []
        self._location: str | None = None
        self._located = threading.Event()
        # A daemon, so that a W&B which hangs for good cannot keep the process alive.
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, object]) -> None:
        """Mirror one row."""
        self._jobs.put(lambda run: run.log(dict(row)))

    def summary(self, values: Mapping[str, object]) -> None:
        """Mirror the summary."""
        self._jobs.put(lambda run: run.summary.update(dict(values)))

    def location(self) -> str | None:
        """Where the run's data lies, once that is known."""
        self._located.wait(_PATIENCE_SECONDS)
        return self._location

    def close(self, exit_code: int, patience: float) -> None:
        """Finish the run; what happens after that is not W&B's to delay."""
        self._jobs.put(lambda run: run.finish(exit_code=exit_code))
        self._jobs.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._warn(f"W&B did not finish within {patience:.0f} s and is left behind.")

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

        # Silent process-wide: that alone keeps W&B from greeting, and from ever asking for a key.
        settings = wandb.setup(_settings(silent=True)).settings
        # W&B's own settings may say `wandb offline`, or name another server.
        mode = settings.mode if self._mode == "auto" else self._mode
        self._keys = find_keys(os.environ.get("WANDB_BASE_URL") or settings.base_url)
        if mode == "online" and not self._keys:
            if self._mode == "online":
                self._warn("W&B has no API key here (`wandb login` stores one); this run is kept offline.")
            mode = "offline"
        try:
            run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._warn(f"W&B cannot be used online ({self._brief(error)}); this run is kept offline.")
            run = self._init("offline")
        run.define_metric("*", step_metric="step")
        # Not `run.url` offline: asking for it prints a warning.
        self._location = run.settings.sync_dir if run.offline else run.url
        return run

    def _init(self, mode: str) -> wandb.Run:
        import wandb

        # An option that was given beats W&B's environment; a default does not. A sweep's own project always wins.
        default = self._project == WandbConfig().project
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", self._project) if default else self._project,
            name=os.environ.get("WANDB_NAME", self._name),
            dir=self._out,
            config=self._config,
            mode=mode,  # type: ignore[arg-type]
            settings=_settings(
                # Of a run that is already going on in this process, nothing changes.
                reinit="create_new",
                # Quiet, and no more than the rows: neither the console, nor the machine, nor the code.
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                # By default rows reach the disk every 15 s only, and a killed run loses them.
                x_transaction_log_flush_interval=0.1,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    def _brief(self, error: BaseException) -> str:
        """An error in a line, with no key in it."""
        text = next(iter(str(error).splitlines()), "")
        for key in self._keys:
            text = text.replace(key, "***")
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def wanted_mode(mode: str) -> str:
    """`--wandb.mode`, and where that is `auto`, what `WANDB_MODE` says: auto, online, offline or disabled."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)


def find_keys(base_url: str) -> list[str]:
    """The credentials that W&B would find for a server, from the environment or netrc; empty when logged out."""
    keys = [os.environ.get("WANDB_API_KEY"), os.environ.get("WANDB_IDENTITY_TOKEN_FILE")]
    host = urlsplit(base_url).netloc
    keys += _netrc_keys(_CLOUD_HOSTS if host in _CLOUD_HOSTS else (host,))
    return [key for key in keys if key]


def _netrc_keys(hosts: tuple[str, ...]) -> list[str | None]:
    named = os.environ.get("NETRC")
    paths = [Path(name).expanduser() for name in ([named] if named else ["~/.netrc", "~/_netrc"])]
    path = next((path for path in paths if path.is_file()), None)
    try:
        entries = netrc.netrc(path) if path else None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return []
    found = [entries.authenticators(host) for host in hosts] if entries else []
    return [entry[2] for entry in found if entry]


def mirrored(row: Mapping[str, object]) -> dict[str, object]:
    """A row of metrics.jsonl as W&B shows it: `replica/0/loss`, `candidate/0/accuracy`, `merge/soup`, numbers only.

    `step` goes along as an ordinary field that every chart uses as its axis, since W&B's own must always grow, while
    the replicas of a segment pass the same steps one after another.
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


def _settings(**wanted: Any) -> wandb.Settings:
    """W&B settings, without those that the installed version does not know."""
    import wandb

    return wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})


def _finite(value: object) -> object:
    """A JSON value with null for what JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
