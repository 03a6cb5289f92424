"""`sparsekit merge MODEL [MODEL ...] --merge NAME -o OUT`. The options are parsed before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.cli.common import data_of, print_plugin_help, print_table, warn_of_plugins
from sparsekit.config import parser
from sparsekit.config.options import MergeConfig
from sparsekit.errors import UserError
from sparsekit.plugins.objects import import_modules

_USAGE = "sparsekit merge MODEL [MODEL ...] --merge NAME [--merge.X ...] -o OUT [options]"
_DESCRIPTION = (
    "Average finished models of one architecture, trained by sparsekit or not. A MODEL is a run, a directory that "
    "timm saved, or a file of weights; the same one may come twice."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code.

    Raises:
        UserError: the options or the models are wrong; nothing was written.
        RunError: the merge failed.
    """
    warn_of_plugins()
    if print_plugin_help(arguments):
        return 0
    paths, given = parser.split(arguments)
    options = parser.build("sparsekit merge", _DESCRIPTION, MergeConfig, _USAGE)
    parser.parse_as(MergeConfig, options, given, run=None)  # first: --help, and what is wrong with the options
    if not paths:
        raise UserError(f"give the models to merge: {_USAGE}")
    from sparsekit.merging.finished import merge
    from sparsekit.models.saved import open_saved_model, run_options

    models = [open_saved_model("MODEL", path) for path in paths]
    config = parser.parse_as(MergeConfig, options, given, run_options(models))
    import_modules(config.imports)
    print_table(merge(models, config, data_of(config.data, models, given)))
    return 0
