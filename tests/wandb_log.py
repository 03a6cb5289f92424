"""Reads what an offline W&B run wrote: a LevelDB log of protobuf records."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass
class WandbLog:
    """One run.

    Attributes:
        run: The `RunRecord`: id, project, display name, sweep.
        config: What `wandb.init` got.
        history: The logged rows in order, without W&B's own `_` keys.
        summary: The last value of every key.
        steps: W&B's own number of each of these rows.
        step_metrics: Glob of the metric names to the name of their axis.
        hidden: Metrics without a chart of their own.
        exit_code: None where the run was not finished.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    exit_code: int | None = None


def only_log(folder: Path, finished: bool = True) -> WandbLog:
    """The one offline run somewhere below `folder`; with `finished` it must have been finished."""
    (path,) = folder.glob("**/offline-run-*/*.wandb")
    return finished_log(path) if finished else read_log(path)


def finished_log(path: Path) -> WandbLog:
    """The log of a run that was finished, which W&B writes a moment after it says so."""
    log, deadline = read_log(path), time.monotonic() + 60
    while log.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.01)
        log = read_log(path)
    assert log.exit_code is not None, "the run was not finished"
    return log


def read_log(path: Path) -> WandbLog:
    """Everything that the file of one run says."""
    from wandb.proto import wandb_internal_pb2 as messages

    log = WandbLog()
    for data in _records(path.read_bytes()):
        record = messages.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.run = record.run
            log.config |= _items(record.run.config.update)
        elif kind == "config":
            log.config |= _items(record.config.update)
        elif kind == "history":
            log.history.append(_items(record.history.item))
            log.steps.append(record.history.step.num)
        elif kind == "summary":
            log.summary |= _items(record.summary.update)
        elif kind == "metric":
            name = record.metric.glob_name or record.metric.name
            if record.metric.options.hidden:
                log.hidden.add(name)
            else:
                log.step_metrics[name] = record.metric.step_metric
        elif kind == "exit":
            log.exit_code = record.exit.exit_code
    return log


def _items(items: Any) -> dict[str, Any]:
    found = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {key: value for key, value in found.items() if not key.startswith("_")}


def _records(data: bytes) -> Iterator[bytes]:
    """Whole records; a killed run's last one may be torn and is left out."""
    assert data[:4] == b":W&B", "not a W&B log"
    position, record = 7, b""
    while position + _HEADER.size <= len(data):
        if (left := _BLOCK - position % _BLOCK) < _HEADER.size:
            position += left  # the end of a block is padded
            continue
        checksum, length, kind = _HEADER.unpack_from(data, position)
        chunk = data[position + _HEADER.size : position + _HEADER.size + length]
        if kind == 0 or len(chunk) < length:
            return
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"damaged at byte {position}"
        position += _HEADER.size + length
        record = chunk if kind in (_FULL, _FIRST) else record + chunk
        if kind in (_FULL, _LAST):
            yield record
