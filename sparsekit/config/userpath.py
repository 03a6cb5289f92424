"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """The path with a home directory in place of `~` or `~user`; an unknown user's stays, where Path's own raises."""
    return Path(os.path.expanduser(path))


def local_directory(model: str | None) -> Path | None:
    """The directory that a model's name `local-dir:DIR` means; None for any other name."""
    kind, _, folder = (model or "").partition(":")
    return expanded(folder) if kind == "local-dir" else None
