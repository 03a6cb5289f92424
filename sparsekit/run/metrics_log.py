"""A run's metrics: `metrics.jsonl` is the record, W&B mirrors it. No account or network is needed."""

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
"""How long W&B may take after a signal, so that stopping takes 10 s at most."""


class Log(ABC):
    """A log of rows of metrics.

    Args:
        rank: This process's rank, to be put into rows about a replica; None without torchrun.
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
        """Log one row.

        Args:
            event: What happened: `train`, `segment`, `candidate`, `merge`, `evaluate`, `done`, ….
            values: Plain JSON values; NaN and infinity are written as null.
            step: Optimizer steps along the critical path.
            segment: Index of the segment that the row is about, if any.
            replica: Index of the replica that the row is about, if any.
        """
        where = {"step": step, "segment": segment, "replica": replica}
        where["rank"] = self._rank if replica is not None else None
        row = {"event": event, **{key: value for key, value in where.items() if value is not None}}
        self.extend([row | {key: _finite(value) for key, value in (values or {}).items()}])

    @abstractmethod
    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add complete rows."""


class Tracker(Log):
    """The rows of one run, written at once to `metrics.jsonl` and mirrored to one W&B run. A context manager.

    Args:
        out: The run directory; W&B's files go to its `wandb/`.
        wandb_config: `--wandb`.
        run_config: The complete config under flat, dotted names.
        name: Name of the W&B run.
        warn: Called from another thread with a one-line warning if W&B cannot be used.
        offset: Size in bytes to which metrics.jsonl is truncated first: `offset` at the checkpoint that is resumed.
        rank: This process's rank, to be put into rows about a replica; None without torchrun.
        score: The name of the task's score.
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
        score: str = "accuracy",
    ) -> None:
        super().__init__(rank)
        self._file = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self._file.truncate(offset)  # a resumed run writes the rows after its checkpoint again
        self._count = (out / "metrics.jsonl").read_bytes().count(b"\n") if offset else 0
        mode = _wanted_mode(wandb_config.mode)
        known = out, mode, wandb_config, run_config, name, warn, score
        self._mirror = None if mode == "disabled" else WandbMirror(*known)

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write complete rows to metrics.jsonl and mirror them."""
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
            if self._mirror:
                self._mirror.log(self._count, row)
            self._count += 1

    @property
    def offset(self) -> int:
        """Size of metrics.jsonl in bytes, after a flush to the disk: a checkpoint that holds it relies on the rows."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def summary(self, values: Mapping[str, object]) -> None:
        """Put values into the W&B run's summary."""
        if self._mirror:
            self._mirror.summary({key: value for key, value in values.items() if _finite(value) is not None})

    def model(self, files: Sequence[Path], metadata: Mapping[str, object], parent: str | None) -> None:
        """Upload the finished model as an artifact of an online W&B run.

        Args:
            files: Files and directories to upload.
            metadata: The artifact's metadata.
            parent: The model that training started from, as given by `--model.name`.
        """
        if self._mirror:
            self._mirror.model(files, {key: _finite(value) for key, value in metadata.items()}, parent)

    def page(self, path: Path) -> None:
        """Show an HTML page in the W&B run."""
        if self._mirror:
            self._mirror.page(path)

    @property
    def wandb_locations(self) -> Sequence[str]:
        """The W&B run's URL, and its folders for `wandb sync`, oldest first; empty without W&B. Waits for its start."""
        return self._mirror.locations() if self._mirror else ()

    def close(self, exit_code: int = 0, patience: float | None = None) -> None:
        """Close the file and finish the W&B run, waiting for its upload up to `patience` seconds or a default limit."""
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
    """Rows in memory, of a rank other than the leader, which writes them.

    Attributes:
        rows: The rows logged so far.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rows: list[Mapping[str, object]] = []

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add complete rows to `rows`."""
        self.rows.extend(rows)


def _wanted_mode(mode: str) -> str:
    """`--wandb.mode`, or `WANDB_MODE` if that is `auto`: auto, online, offline or disabled."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)


def _finite(value: object) -> object:
    """The value with NaN and infinities replaced by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
