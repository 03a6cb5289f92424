"""`sparsekit evaluate RUN|MODEL_DIR`: measure a saved model, print tables, write JSON."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.cli.common import data_options
from sparsekit.config import parser
from sparsekit.config.checks import check_device
from sparsekit.config.options import EvaluateConfig
from sparsekit.display.live import Display
from sparsekit.errors import UserError
from sparsekit.files import expanded, write_json
from sparsekit.models import subjects

_USAGE = "sparsekit evaluate RUN|MODEL_DIR [options]"
_DESCRIPTION = (
    "Measure a finished model: accuracy, calibration, robustness. RUN is a run directory, MODEL_DIR a model that "
    "sparsekit or timm saved."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError where the options or the model are wrong."""
    paths, given = parser.split(arguments)
    options = parser.build("sparsekit evaluate", _DESCRIPTION, EvaluateConfig, _USAGE)
    parser.parse_as(EvaluateConfig, options, given)  # first: --help, and what is wrong with the options
    if len(paths) != 1:
        raise UserError(f"give one run or model directory to evaluate, not {len(paths)}: {_USAGE}")
    subject = subjects.find(paths[0])
    saved = [f"--{key}={subject.config[key]}" for key in ("precision", "channels_last") if key in subject.config]
    config = parser.parse_as(EvaluateConfig, options, [*data_options(subject.data()), *saved, *given])
    check_device(config.device)
    with Display() as display:
        from sparsekit.display import tables
        from sparsekit.evaluation.evaluate import evaluate  # only now: it imports torch

        found = evaluate(subject, config, display.note if config.corruptions else None)
        for table in tables.evaluation(found):
            display.show(table)
        own = subject.is_run and found["data"]["name"] == subject.config.get("data", {}).get("name")
        path = expanded(config.out) if config.out else subject.folder / "evaluation.json" if own else None
        if path:
            try:
                write_json(path, found)
            except OSError as error:
                raise UserError(f"--out {path}: {error.strerror}; give a file that can be written") from error
            display.note(f"written: {path}")
    return 0
