"""The two errors that end a command, which `cli.main` turns into exit codes, and parts of their messages."""

from __future__ import annotations

from collections.abc import Iterable


class _OneLine(Exception):
    """An error whose message says all: a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [f"{type(self).__name__}: {self}"]


class UserError(_OneLine, ValueError):
    """Bad input (exit code 2). The message names the option, the value and the fix."""


class RunError(_OneLine, RuntimeError):
    """The run itself failed (exit code 1). The message says what happened and what is left."""


class ReadError(RunError):
    """A batch could not be read: an image is damaged, or a process that reads images ended. The training is whole."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not blank; its type's name where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(name: str) -> str:
    """A file's name as it is; quoted and escaped where it holds line breaks or bytes that are no text."""
    return name if name.isprintable() else repr(name)


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint `" Did you mean 'x'?"` for a misspelt name; empty where no known name is close."""
    import difflib  # only now: few look for a name, and all import this file

    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower))
    close.sort(key=lambda other: sorted(other) != sorted(name.lower()))  # a swap of letters comes first
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
