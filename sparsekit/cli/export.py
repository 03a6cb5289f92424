"""`sparsekit export MODEL --format NAME -o OUT`. The options are parsed before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.cli.common import data_of, print_plugin_help, print_table
from sparsekit.config import parser
from sparsekit.config.options import ExportConfig
from sparsekit.errors import UserError
from sparsekit.plugins.objects import import_modules

_USAGE = "sparsekit export MODEL --format NAME -o OUT [--measure] [options]"
_DESCRIPTION = (
    "Write a finished model in another format, read it back, and compare. MODEL is a run, a directory that timm "
    "saved, or a file of weights."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code.

    Raises:
        UserError: the options or the model are wrong; nothing was written.
        RunError: the export failed.
    """
    if print_plugin_help(arguments):
        return 0
    paths, given = parser.split(arguments)
    options = parser.build("sparsekit export", _DESCRIPTION, ExportConfig, _USAGE)
    parser.parse_as(ExportConfig, options, given, run=None)  # first: --help, and what is wrong with the options
    if len(paths) != 1:
        raise UserError(f"give one model to export, not {len(paths)}: {_USAGE}")
    from sparsekit.exporting.export import export
    from sparsekit.models.saved import open_saved_model, run_options

    model = open_saved_model("MODEL", paths[0])
    config = parser.parse_as(ExportConfig, options, given, run_options([model]))
    import_modules(config.imports)
    print_table(export(model, config, data_of(config.data, [model], given)))
    return 0
