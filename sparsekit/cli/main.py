"""The command line: one function a command, and errors turned into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING

from sparsekit._version import __version__
from sparsekit.errors import RunError, UserError, nearest
from sparsekit.run.signals import Stopped
from sparsekit.training import ranks

if TYPE_CHECKING:
    from sparsekit.config.options import FitConfig

USAGE = """\
usage: sparsekit COMMAND [options]

Prune a timm model while it trains, and average replicas into one sparse model at every pruning step.

commands:
  fit       train, prune and merge: sparsekit fit --method gmp --merge uniform
  merge     average finished models: sparsekit merge RUN RUN --merge uniform -o OUT
  export    write a finished model in another format: sparsekit export RUN --format onnx -o model.onnx
  plan      print what fit would do, and its cost, without training
  evaluate  measure a finished model: sparsekit evaluate RUN|MODEL_DIR [--corruptions true]
  report    one page about a run, or several compared: sparsekit report RUN [RUN ...] -o report.html
  sweep     run a W&B sweep file here, without W&B: sparsekit sweep configs/sweeps/methods.yaml
  plugins   list, check or begin pruning methods and merges: list, check NAME, new NAME --kind method|merge

options:
  --help     this text; `sparsekit COMMAND --help` for a command's own
  --version  the version
  --debug    with any command: show tracebacks
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows "?" instead of ending the command
    leads = ranks.number() == 0  # the leader says what is wrong for all; only it can say what went wrong with it
    try:
        return _dispatch(arguments)
    except (UserError, RunError) as error:
        if debug:
            raise
        if leads or isinstance(error, RunError):
            print(f"sparsekit: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Stopped as stop:
        how = f"go on with the same options, --out {stop.out} and --resume" if stop.out else "nothing was begun"
        if leads:
            print(f"sparsekit: stopped by {stop}; {how}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        if debug:
            raise
        print("sparsekit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left early, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # argparse, after --help
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        from sparsekit.plugins import blame

        if debug or not (told := blame.told(error)):
            raise
        print(f"sparsekit: error: {told}", file=sys.stderr)
        return 1


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"sparsekit {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        hint = nearest(name, [*COMMANDS, "--help", "--version"])
        raise UserError(f"unknown {kind} {name!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    return COMMANDS[name](rest)


def _fit(arguments: Sequence[str]) -> int:
    config = _configure("fit", "Train a timm model, prune it, and merge replicas.", arguments)
    if config is not None:
        from sparsekit.fit import fit  # only now: it imports torch

        fit(config)
    return 0


def _plan(arguments: Sequence[str]) -> int:
    config = _configure("plan", "Print the plan of a run and its cost, without training.", arguments)
    if config is not None:
        from sparsekit.display import live as display
        from sparsekit.planning import plan as planning

        plan = planning.summarize(config, planning.make_plan(config, planning.make_stages(config)))
        shown = display.Display()
        shown.plan(planning.table_rows(plan), plan.critical_epochs, plan.total_epochs)
        shown.picture(plan)
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    from sparsekit.cli import evaluate as evaluate_command
    from sparsekit.display.live import Display

    with Display() as display:
        return evaluate_command.main(arguments, display)


def _report(arguments: Sequence[str]) -> int:
    from sparsekit.cli import report as command

    return command.main(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    from sparsekit.cli import sweep as command

    return command.main(arguments)


def _configure(command: str, description: str, arguments: Sequence[str]) -> FitConfig | None:
    """The checked options; None where only a plugin's help was asked for."""
    from sparsekit.config import parser as options
    from sparsekit.plugins import listing

    _warn_of_plugins()
    if (text := listing.asked_help(arguments)) is not None:
        print(text)
        return None
    return options.parse(options.build(f"sparsekit {command}", description), arguments)


def _merge(arguments: Sequence[str]) -> int:
    from sparsekit.cli import model_commands
    from sparsekit.plugins import listing

    _warn_of_plugins()
    if (text := listing.asked_help(arguments)) is not None:
        print(text)
        return 0
    return model_commands.merge_command(arguments)


def _export(arguments: Sequence[str]) -> int:
    from sparsekit.cli import model_commands

    return model_commands.export_command(arguments)


def _plugins(arguments: Sequence[str]) -> int:
    from sparsekit.plugins import listing

    _warn_of_plugins()
    return listing.main(arguments)


def _warn_of_plugins() -> None:
    """Say what keeps installed plugins from being found."""
    from sparsekit.plugins.registry import discover

    for note in discover().warnings:
        print(f"sparsekit: warning: {note}", file=sys.stderr)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "fit": _fit,
    "merge": _merge,
    "export": _export,
    "plan": _plan,
    "evaluate": _evaluate,
    "report": _report,
    "sweep": _sweep,
    "plugins": _plugins,
}
