"""The two ways a command can end badly; `cli.main` turns them into exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input (exit code 2). The message names the option, the value and the fix."""


class RunError(RuntimeError):
    """The run itself failed (exit code 1). The message says what happened and what is left."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A ready-made hint, `" Did you mean 'x'?"`, or nothing where no known name is close."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower))
    close.sort(key=lambda other: sorted(other) != sorted(name.lower()))  # letters that changed places come first
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
