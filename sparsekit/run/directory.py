"""The run directory: choosing a new one or one to resume, its lock, and its small files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config.options import FREE, FitConfig, flatten, option_defaults
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.run import images


def choose(out: str | None, resume: bool, plain: dict[str, Any]) -> tuple[Path, bool]:
    """Choose the run directory, without creating it.

    Returns:
        The directory, and whether it holds a run to resume.

    Raises:
        UserError: the directory is not empty, holds no run to resume, or a run with a different configuration.
    """
    if out is None:
        out = _sweep_directory(f"{plain['method']['name']}-{plain['merge']['name']}")
    if out is None:
        if resume:
            raise UserError("--resume needs --out, the directory of the run to resume")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return Path("runs", f"{plain['method']['name']}-{plain['merge']['name']}-{stamp}-{secrets.token_hex(2)}"), False
    path = expanded(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; give a new directory")
    if not path.is_dir() or all(entry.name == ".lock" for entry in path.iterdir()):
        return path, False
    if not resume:
        more = ", or --resume to continue the run in it" if (path / "config.yaml").is_file() else ""
        raise UserError(f"--out {path} is not empty; give a new directory{more}")
    if not (path / "config.yaml").is_file():
        raise UserError(f"--resume: --out {path} holds no run (no config.yaml); give the directory of a run")
    _compare(path / "config.yaml", plain)
    return path, True


def _sweep_directory(name: str) -> str | None:
    """The directory of a run that a W&B sweep agent started; None for other runs.

    It depends on the run's id alone, which is the same again when the agent resumes the run.
    """
    sweep, run = (os.environ.get(f"WANDB_{key}_ID", "") for key in ("SWEEP", "RUN"))
    plain = re.fullmatch(r"[\w-]+", sweep) and re.fullmatch(r"[\w-]+", run)
    return str(Path("runs", f"sweep-{sweep}", f"{name}-{run}")) if plain else None


def finished(path: Path) -> dict[str, Any] | None:
    """The summary of a run with the status `done`; None for other runs."""
    try:
        summary = json.loads((path / "summary.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) and summary.get("status") == "done" else None


def read_plan(path: Path) -> dict[str, Any]:
    """The content of a run's plan.json; empty where it cannot be read."""
    try:
        plan = json.loads((path / "plan.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Create the directory and hold its lock; the lock is released when this process ends.

    Raises:
        UserError: another process holds the lock, or the directory cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}; give a directory that can be written") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(f"--out {path} is in use by process {owner}; wait for it, or give another --out") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def _compare(path: Path, plain: dict[str, Any]) -> None:
    try:
        found = flatten(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"--resume: {path} cannot be read ({type(error).__name__}); start again with another --out"
        ) from error
    old = option_defaults(FitConfig) | found  # options that are newer than the run
    new = flatten(yaml.safe_load(yaml.safe_dump(plain)))
    names = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    # where the images are listed, they are compared themselves: they may lie elsewhere now
    free = FREE | {"data.root"} if (path.parent / images.NAME).is_file() else FREE
    differing = [key for key in names if key not in free and key.partition(".")[0] not in free]
    if differing:
        changes = ", ".join(f"--{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in differing)
        raise UserError(
            f"--resume: {path.parent} was started with other options: {changes}; give the same, or another --out"
        )
