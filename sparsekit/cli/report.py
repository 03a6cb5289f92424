"""`sparsekit report RUN [RUN…] -o report.html`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sparsekit._version import __version__
from sparsekit.errors import UserError
from sparsekit.files import expanded, write_whole
from sparsekit.report import compare, single
from sparsekit.report.html import Html, element, join, page
from sparsekit.report.runs import Run, read

DETAILED = 4
"""Up to so many runs, each gets its own sections below the comparison."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"argument (?:-o/)?(--\w+)\S*: expected one argument", r"\1 needs a value", message)
        message = re.sub(r"unrecognized arguments: (\S+).*", r"unknown option \1", message)
        message = re.sub(r"the following arguments are required: (.*)", r"\1 must be given", message)
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = _Parser(
        prog="sparsekit report", description="One page about one run, or several compared.", allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument(
        "-o",
        "--out",
        "--output",
        dest="output",
        metavar="FILE",
        help="by default RUN/report.html, or for several report.html",
    )
    options = parser.parse_args(list(arguments))
    default = expanded(options.runs[0]) / "report.html" if len(options.runs) == 1 else Path("report.html")
    path = expanded(options.output) if options.output else default
    for run in write(options.runs, path):
        if run.problems:
            print(f"sparsekit: warning: {run.path}: {'; '.join(run.problems)}", file=sys.stderr)
    print(f"written: {path}")
    return 0


def write(paths: Sequence[str], output: Path) -> list[Run]:
    """Make the page about these runs; raises UserError where one is none, or the file cannot be written."""
    runs = [read(path) for path in paths]
    text = make(runs)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text.encode())
    except OSError as error:
        raise UserError(f"--out {output}: {error.strerror}; give a file that can be written") from error
    return runs


def make(runs: Sequence[Run]) -> str:
    """The page."""
    if len(runs) == 1:
        run = runs[0]
        return page(f"{run.name} – sparsekit", _heading(run, "h1"), single.sections(run), _footer())
    done = sum(run.done for run in runs)
    parts: list[Html] = [
        element("h1", f"{len(runs)} runs"),
        element("p", f"{done} of them done.", class_="verdict"),
        compare.section(runs),
    ]
    if len(runs) <= DETAILED:
        parts += [join([_heading(run, "h2"), single.sections(run, "h3")]) for run in runs]
    else:
        told = f"Each run's own plots are left out with more than {DETAILED} runs; sparsekit report RUN makes them."
        parts.append(element("p", told, class_="dim"))
    return page(f"{len(runs)} runs – sparsekit", *parts, _footer())


def _heading(run: Run, level: str) -> Html:
    return join([element(level, run.name, " ", single.badge(run)), element("p", single.about(run), class_="dim")])


def _footer() -> Html:
    return element("p", f"Made by sparsekit {__version__} from the run's files.", class_="dim")
