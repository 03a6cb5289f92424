"""`sparsekit report RUN [RUN…] -o report.html`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sparsekit.config.userpath import expanded
from sparsekit.errors import UserError
from sparsekit.report import page


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
    for run in page.write(options.runs, path):
        if run.note:
            print(f"sparsekit: warning: {run.path}: {run.note}", file=sys.stderr)
    print(f"written: {path}")
    return 0
