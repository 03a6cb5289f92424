"""`sparsekit fit` and `sparsekit plan`, which take the same options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsekit.cli.common import print_plugin_help, warn_of_plugins

if TYPE_CHECKING:
    from sparsekit.config.options import FitConfig


def main(arguments: Sequence[str]) -> int:
    """Run `sparsekit fit`; the exit code.

    Raises:
        UserError: the options are wrong; nothing was written.
        RunError: the run failed.
    """
    config = _configure("fit", "Train a timm model, prune it, and merge replicas.", arguments)
    if config is not None:
        from sparsekit.launch import fit  # only now: it imports torch

        fit(config)
    return 0


def plan(arguments: Sequence[str]) -> int:
    """Run `sparsekit plan`; the exit code. Raises UserError where the options are wrong."""
    config = _configure("plan", "Print the plan of a run and its cost, without training.", arguments)
    if config is not None:
        from sparsekit.data import contents_at_hand
        from sparsekit.display.live import Display
        from sparsekit.planning import plan as planning

        segments = planning.make_plan(config, planning.make_stages(config))
        planning.check_rates(config, segments)
        plan = planning.summarize(config, segments)
        display = Display()
        if contents := contents_at_hand(config.data):
            display.notes(contents.lines())
        display.plan(planning.table_rows(plan), plan.critical_epochs, plan.total_epochs)
        display.picture(plan)
        for line in [*planning.nothing_to_merge(config, segments), *planning.varied(config, segments)]:
            display.note(line)
    return 0


def _configure(command: str, description: str, arguments: Sequence[str]) -> FitConfig | None:
    """The checked options; None where only a plugin's help was asked for, which is printed."""
    warn_of_plugins()
    if print_plugin_help(arguments):
        return None
    from sparsekit.config import parser  # only now: a plugin's help needs no jsonargparse

    return parser.parse(parser.build(f"sparsekit {command}", description), arguments)
