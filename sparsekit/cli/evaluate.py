"""`sparsekit evaluate`: everything that is measured of a saved model, shown and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsekit.config.evaluate_options import parse
from sparsekit.config.userpath import expanded
from sparsekit.errors import UserError

if TYPE_CHECKING:
    from sparsekit.display.live import Display


def main(arguments: Sequence[str], display: Display) -> int:
    """Run the command."""
    from sparsekit.display import tables
    from sparsekit.files import write_json

    source, config, output = parse(arguments)
    from sparsekit.evaluation import evaluate as suite

    found = suite.evaluate(source, config, display.note if config.corruptions else None)
    for table in tables.evaluation(found):
        display.show(table)
    own = source.run and found["data"]["name"] == source.data_options.get("name")
    path = expanded(output) if output else source.path / "evaluation.json" if own else None
    if path:
        try:
            write_json(path, found)
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}; give a file that can be written") from error
        display.note(f"written: {path}")
    return 0
