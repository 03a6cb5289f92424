"""How far a sweep is: `sweep.json`, written whole after every change, beside the runs themselves, which decide."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsekit.errors import UserError
from sparsekit.files import write_whole
from sparsekit.sweep.spec import Cell

FILE = "sweep.json"


@dataclass
class Entry:
    """One cell.

    Attributes:
        values: Its parameters.
        status: `waiting`, `running`, `done`, `failed` or `stopped`.
        attempts: When a process was started for it, in seconds since 1970.
        error: The line that says why it failed.
    """

    values: dict[str, Any]
    status: str = "waiting"
    attempts: list[float] = field(default_factory=list)
    error: str | None = None


class State:
    """The cells of a sweep directory.

    Raises:
        UserError: the directory holds cells of the same names with other values, or a file that is no state.
    """

    def __init__(self, out: Path, cells: Sequence[Cell]) -> None:
        self._path = out / FILE
        before = self._read()
        self.entries: dict[str, Entry] = {}
        for cell in cells:
            values = json.loads(json.dumps(dict(cell.values), default=str))
            entry = before.pop(cell.name, Entry(values))
            if entry.values != values:
                keys = sorted(key for key in entry.values | values if entry.values.get(key) != values.get(key))
                raise UserError(
                    f"--out {out} holds {cell.name} with another value of {', '.join(keys)}; give another --out"
                )
            entry.status = "done" if entry.status == "done" else "waiting"
            self.entries[cell.name] = entry
        self._others = before  # cells of an earlier, longer sweep file stay on record
        self.write()

    def begin(self, name: str) -> None:
        """A process starts."""
        entry = self.entries[name]
        entry.status, entry.error = "running", None
        entry.attempts.append(time.time())
        self.write()

    def end(self, name: str, status: str, error: str | None = None) -> None:
        """It ended."""
        self.mark(name, status, error)
        self.write()

    def mark(self, name: str, status: str, error: str | None = None) -> None:
        """It need not start; one `write` follows many of these, since each waits for the disk."""
        self.entries[name].status, self.entries[name].error = status, error

    def count(self, status: str) -> int:
        """How many cells are there."""
        return sum(entry.status == status for entry in self.entries.values())

    def write(self) -> None:
        """Write the file; there whole or not at all."""
        cells = {name: asdict(entry) for name, entry in (self.entries | self._others).items()}
        write_whole(self._path, (json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n").encode())

    def _read(self) -> dict[str, Entry]:
        if not self._path.exists():
            return {}
        try:
            found = json.loads(self._path.read_text("utf-8"))["cells"]
            return {name: Entry(**entry) for name, entry in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self._path} is damaged ({type(error).__name__}); give another --out") from error
