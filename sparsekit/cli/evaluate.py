"""`sparsekit evaluate MODEL`: measure a saved model, print tables, write JSON."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.cli.common import print_plugin_help
from sparsekit.config import parser
from sparsekit.config.checks import check_device
from sparsekit.config.options import EvaluateConfig
from sparsekit.display.live import Display
from sparsekit.errors import UserError
from sparsekit.files import expanded, write_json
from sparsekit.models.saved import open_saved_model, run_options
from sparsekit.plugins.objects import import_modules

_USAGE = "sparsekit evaluate MODEL [options]"
_DESCRIPTION = (
    "Measure a finished model: accuracy, calibration, robustness. MODEL is a run, a directory that timm saved, or a "
    "file of weights."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError where the options or the model are wrong."""
    if print_plugin_help(arguments):
        return 0
    paths, given = parser.split(arguments)
    options = parser.build("sparsekit evaluate", _DESCRIPTION, EvaluateConfig, _USAGE)
    parser.parse_as(EvaluateConfig, options, given, run=None)  # first: --help, and what is wrong with the options
    if len(paths) != 1:
        raise UserError(f"give one model to evaluate, not {len(paths)}: {_USAGE}")
    source = open_saved_model("MODEL", paths[0])
    saved = {key: source.run[key] for key in ("precision", "channels_last") if key in source.run}
    config = parser.parse_as(EvaluateConfig, options, given, run_options([source]) | saved)
    import_modules(config.imports)
    check_device(config.device)
    with Display() as display:
        from sparsekit.display import tables
        from sparsekit.evaluation.evaluate import evaluate  # only now: it imports torch

        found = evaluate(source, config, display.note)
        for table in tables.evaluation(found):
            display.show(table)
        own = source.is_run and found["data"]["name"] == source.data_options.get("name")
        path = expanded(config.out) if config.out else source.path / "evaluation.json" if own else None
        if path:
            try:
                write_json(path, found)
            except OSError as error:
                raise UserError(f"--out {path}: {error.strerror}; give a file that can be written") from error
            display.note(f"written: {path}")
    return 0
