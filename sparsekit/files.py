"""Atomic file writes, and paths as users write them."""

from __future__ import annotations

import json
import os
from pathlib import Path


def expanded(path: str) -> Path:
    """Replace a leading `~` or `~user` by that home directory; an unknown user's stays, where `Path` would raise."""
    return Path(os.path.expanduser(path))


def local_directory(model: str | None) -> Path | None:
    """The directory DIR of a model name `local-dir:DIR`; None for any other name."""
    kind, _, folder = (model or "").partition(":")
    return expanded(folder) if kind == "local-dir" else None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or a power cut it holds all of `data`, or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)  # the new name lasts only with its folder


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_yaml(path: Path, value: object) -> None:
    """Write a value as YAML, atomically."""
    import yaml  # only now: most commands write none

    write_whole(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
