"""What a run records: `metrics.jsonl`, the truth, and W&B, its mirror. No account or network is ever needed."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sparsekit.config.options import WandbConfig
from sparsekit.run.signals import Stopped
from sparsekit.run.wandb_mirror import WandbMirror

_STOP_SECONDS = 4.0
"""How long W&B may take where a signal ends the run, which leaves 10 s for everything."""


class Log(ABC):
    """Takes rows.

    Args:
        rank: Goes into the rows of replicas, where there are several ranks.
    """

    def __init__(self, rank: int | None) -> None:
        self._rank = rank

    def log(
        self,
        event: str,
        values: Mapping[str, object] | None = None,
        *,
        step: int,
        segment: int | None = None,
        replica: int | None = None,
    ) -> None:
        """Take one row.

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

    @abstractmethod
    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Take rows that are made already."""


class Tracker(Log):
    """The rows of one run, written at once to `metrics.jsonl` and mirrored to one W&B run. A context manager.

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
        super().__init__(rank)
        self._file = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self._file.truncate(offset)  # rows after the checkpoint from which a run goes on are written again
        self._count = (out / "metrics.jsonl").read_bytes().count(b"\n") if offset else 0
        mode = _wanted_mode(wandb_config.mode)
        self._mirror = None if mode == "disabled" else WandbMirror(out, mode, wandb_config, run_config, name, warn)

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows that are made already."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
            if self._mirror:
                self._mirror.log(self._count, row)
            self._count += 1

    @property
    def offset(self) -> int:
        """Size of metrics.jsonl in bytes, with every row so far; they are on the disk, for a checkpoint tells it."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def summary(self, values: Mapping[str, object]) -> None:
        """Put values into the W&B run's summary."""
        if self._mirror:
            self._mirror.summary({key: value for key, value in values.items() if _finite(value) is not None})

    def model(self, files: Sequence[Path], metadata: Mapping[str, object], parent: str | None) -> None:
        """Keep the finished model as an artifact of an online W&B run.

        Args:
            files: Files and directories.
            metadata: What the artifact says of itself.
            parent: The model that training began with, as `--model.name` has it.
        """
        if self._mirror:
            self._mirror.model(files, {key: _finite(value) for key, value in metadata.items()}, parent)

    def page(self, path: Path) -> None:
        """Show an HTML page in the W&B run."""
        if self._mirror:
            self._mirror.page(path)

    @property
    def wandb_locations(self) -> Sequence[str]:
        """The W&B run's URL, and folders for `wandb sync`, a resumed run's first parts first; empty without W&B. May
        wait for W&B to start.
        """
        return self._mirror.locations() if self._mirror else ()

    def close(self, exit_code: int = 0, patience: float | None = None) -> None:
        """Close the file and finish the W&B run, waiting for its upload within limits, or within `patience` seconds."""
        self._file.close()
        if self._mirror:
            self._mirror.close(exit_code, patience)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hurried = kind is not None and issubclass(kind, Stopped)
        self.close(0 if kind is None else 1, _STOP_SECONDS if hurried else None)


class Rows(Log):
    """The rows of a rank that does not lead: they wait for the leader to write them.

    Attributes:
        rows: What was logged.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rows: list[Mapping[str, object]] = []

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Keep rows."""
        self.rows.extend(rows)


def _wanted_mode(mode: str) -> str:
    """`--wandb.mode`, and where that is `auto`, what `WANDB_MODE` says: auto, online, offline or disabled."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)


def _finite(value: object) -> object:
    """A JSON value with null for what JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
