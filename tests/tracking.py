"""What the tests of metrics.jsonl and of its W&B mirror share: a W&B that fails where it is asked to, and readers."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"
Say = Callable[[str], None]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


class FakeWandb:
    """Stands in for the module: remembers how it was started, and fails where it is told to."""

    def __init__(self, fail_at: str = "", error: BaseException | None = None, count: int = 1) -> None:
        self.fail_at, self.error, self.left = fail_at, error or RuntimeError("it broke"), count
        self.modes: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.Settings = type("Settings", (), {"model_fields": {"silent": 0}, "__init__": lambda self, silent: None})
        self.summary = SimpleNamespace(update=lambda values: self._maybe("summary"))
        self.settings = SimpleNamespace(sync_dir="/somewhere/offline-run")
        self.url, self.id, self.step = "https://wandb.test/run", "run12345", 0
        self.inits: list[dict[str, Any]] = []
        self.run: object = None
        self.mode = "online"  # by W&B's own settings

    def _maybe(self, place: str) -> None:
        if place == self.fail_at:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def setup(self, settings: object) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode, api_key=os.environ.get("WANDB_API_KEY")))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return bool(os.environ.get("WANDB_API_KEY")) and self.run is None

    def init(self, *, mode: str, **given: Any) -> FakeWandb:
        self.hold.wait(20)
        self.inits.append(given)
        self.modes.append(mode)
        self.offline = mode == "offline"
        self._maybe("init")
        return self

    def define_metric(self, name: str, **_: object) -> None:
        self._maybe("define_metric")

    def log(self, row: dict[str, Any], step: int | None = None, commit: bool = True) -> None:
        assert commit
        self._maybe("log")
        self.rows.append(row)
        self.step = self.step + 1 if step is None else step + 1

    def finish(self, exit_code: int) -> None:
        self._maybe("finish")


def use(monkeypatch: pytest.MonkeyPatch, fake: object) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake)
