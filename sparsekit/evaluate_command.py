"""`sparsekit evaluate`: everything that is measured of a saved model, shown and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsekit.errors import UserError
from sparsekit.evaluate_options import parse
from sparsekit.userpath import expanded

if TYPE_CHECKING:
    from sparsekit.display import Display


def main(arguments: Sequence[str], display: Display) -> int:
    """Run the command."""
    from sparsekit import rundir, tables

    subject, config, output = parse(arguments)
    from sparsekit import suite  # only now: it imports torch

    found = suite.evaluate(subject, config, display.note if config.corruptions else None)
    for table in tables.evaluation(found):
        display.show(table)
    own = subject.is_run and found["data"]["name"] == subject.config.get("data", {}).get("name")
    path = expanded(output) if output else subject.folder / "evaluation.json" if own else None
    if path:
        try:
            rundir.write_json(path, found)
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}; give a file that can be written") from error
        display.note(f"written: {path}")
    return 0
