"""Make the page about one run, or about several compared, and write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from sparsekit._version import __version__
from sparsekit.display.text import percent
from sparsekit.errors import UserError
from sparsekit.files import write_whole
from sparsekit.report import compare, single
from sparsekit.report.runs import Run, read

DETAILED = 4
"""Up to so many runs, each has its own sections below the comparison."""


def write(paths: Sequence[str], output: Path) -> list[Run]:
    """Write the page about these run directories, and return what was read of them.

    Raises:
        UserError: a run cannot be read, or the page cannot be written.
    """
    runs = [read(path) for path in paths]
    text = render(runs)
    try:
        write_whole(output, text.encode())
    except OSError as error:
        raise UserError(f"--out {output}: {error.strerror}; give a file that can be written") from error
    return runs


def render(runs: Sequence[Run]) -> str:
    """The page: one HTML document, with its style and plots in it."""
    return _TEMPLATES.get_template("page.html.jinja").render(
        version=__version__,
        style=Path(__file__).with_name("style.css").read_text("utf-8"),
        runs=[single.view(run) for run in runs] if len(runs) <= DETAILED else [],
        compared=compare.view(runs) if len(runs) > 1 else None,
        detailed=DETAILED,
    )


def _share(value: float) -> str:
    """A share of 0 to 1 in a sentence."""
    return _whole(percent(value, 2))


def _whole(text: str) -> str:
    """A number in a sentence, where no line breaks before its sign."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("sparsekit.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"share": _share, "whole": _whole}
