"""`sparsekit report RUN [RUN…] -o report.html`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sparsekit.cli.common import Parser
from sparsekit.files import expanded
from sparsekit.report import page


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = Parser(prog="sparsekit report", description="One page about one run, or several compared.")
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
