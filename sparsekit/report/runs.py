"""What lies in a run directory, read so that no missing, torn or foreign file keeps a report from being made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config.options import flatten
from sparsekit.errors import UserError
from sparsekit.files import expanded

FILES = ("config.yaml", "plan.json", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Run:
    """One run as its files tell it; what is missing is empty.

    Attributes:
        path: Its directory.
        status: `done`, `stopped`, `failed` or `unfinished`.
        summary: summary.json.
        config: Options by dotted names.
        plan: plan.json.
        rows: metrics.jsonl.
        evaluation: evaluation.json.
        problems: What could not be read, for people.
    """

    path: Path
    status: str
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "done"

    def number(self, key: str) -> float | None:
        """A finite number of the summary."""
        return number(self.summary.get(key))

    def events(self, event: str) -> list[Mapping[str, Any]]:
        """Rows of one kind that have a step and a segment."""
        return self._events.get(event, [])

    @cached_property
    def _events(self) -> dict[str, list[Mapping[str, Any]]]:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            if isinstance(row.get("event"), str) and all(number(row.get(k)) is not None for k in ("step", "segment")):
                found.setdefault(row["event"], []).append(row)
        return found

    def segments(self) -> list[Mapping[str, Any]]:
        """The planned segments that can be made sense of."""
        return self._segments

    @cached_property
    def _segments(self) -> list[Mapping[str, Any]]:
        found = self.plan.get("segments")
        rows = found if isinstance(found, list) else []
        needed = ("segment", "start_epoch", "epochs", "sparsity")
        return [
            row for row in rows if isinstance(row, dict) and all(number(row.get(key)) is not None for key in needed)
        ]

    def epochs(self, step: float) -> float:
        """Epochs after so many optimizer steps; the steps themselves where there is nothing to tell it by."""
        steps, epochs = self._pace
        return float(step * epochs / steps)

    @cached_property
    def _pace(self) -> tuple[float, float]:
        """So many steps were so many epochs, by the last merge that the plan knows the end of."""
        ends = {row["segment"]: row["start_epoch"] + row["epochs"] for row in self.segments()}
        for row in reversed(self.events("merge")):
            end = ends.get(row["segment"], 0.0)
            if end > 0.0 and row["step"] > 0:
                return row["step"], end
        return 1.0, 1.0

    def variants(self) -> dict[str, Mapping[str, Any]]:
        """The evaluation's variants that hold test numbers."""
        found = self.evaluation.get("variants")
        items = found.items() if isinstance(found, dict) else ()
        return {key: value for key, value in items if isinstance(value, dict) and isinstance(value.get("test"), dict)}


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def numbers(values: object) -> list[float]:
    """The finite numbers of a list."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def read(path: str) -> Run:
    """Read a run directory; raises UserError where there is no run at all."""
    folder = expanded(path)
    if not folder.is_dir() or not any((folder / name).is_file() for name in FILES):
        raise UserError(f"report: {path} is no run directory (none of {', '.join(FILES)}); give what --out named")
    problems: list[str] = []
    summary = _json(folder / "summary.json", problems)
    config = _config(folder / "config.yaml", problems)
    plan = _json(folder / "plan.json", problems)
    optional = folder / "evaluation.json"
    evaluation = _json(optional, problems) if optional.is_file() else {}
    rows = _rows(folder / "metrics.jsonl", problems)
    status = str(summary.get("status", "unfinished"))
    return Run(folder, status, summary, config, plan, rows, evaluation, tuple(problems))


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        problems.append(f"{path.name} cannot be read" if path.exists() else f"{path.name} is missing")
        return None


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems.append(f"{path.name} is damaged")
        return {}
    return found


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if text is None:
        return {}
    try:
        return flatten(yaml.safe_load(text))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, yaml.YAMLError):
        problems.append(f"{path.name} is damaged or of another version")
        return {}


def _rows(path: Path, problems: list[str]) -> tuple[dict[str, Any], ...]:
    text = _text(path, problems)
    rows, bad = [], 0
    for line in (text or "").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        problems.append(f"metrics.jsonl: {bad} line{'s' * (bad != 1)} cannot be read")
    return tuple(rows)
