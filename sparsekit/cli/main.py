"""The command line: usage, dispatch to one module a command, and errors turned into exit codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper

from sparsekit._version import __version__
from sparsekit.errors import RunError, UserError, nearest
from sparsekit.run.signals import Stopped
from sparsekit.training import ranks

_LEADER_SECONDS = 10.0
USAGE = """\
usage: sparsekit COMMAND [options]

Prune a timm model while it trains, and average replicas into one sparse model at every pruning step.

commands:
  fit       train, prune and merge: sparsekit fit --method gmp --merge uniform
  merge     average finished models: sparsekit merge RUN RUN --merge uniform -o OUT
  export    write a finished model in another format: sparsekit export RUN --format onnx -o model.onnx
  plan      print what fit would do, and its cost, without training
  evaluate  measure a finished model: sparsekit evaluate MODEL [--corruptions true]
  report    one page about a run, or several compared: sparsekit report RUN [RUN ...] -o report.html
  sweep     run a W&B sweep file here, without W&B: sparsekit sweep configs/sweeps/methods.yaml
  plugins   list, check or begin methods, merges, tasks and more: list, check NAME, new NAME --kind KIND

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
        sys.stdout.reconfigure(errors="replace")  # so that an ASCII terminal shows "?" instead of raising
    leads = True  # bad input is the same on every rank, so one prints it; a failure is each rank's own
    try:
        leads = ranks.number() == 0
        return _dispatch(arguments)
    except (UserError, RunError) as error:
        if debug:
            raise
        if leads or isinstance(error, RunError):
            print(f"sparsekit: error: {error}", file=sys.stderr)
        else:
            time.sleep(_LEADER_SECONDS)  # torchrun ends all ranks once one ends, and the leader has this line to print
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

        if debug or not (line := blame.describe(error)):
            raise
        print(f"sparsekit: error: {line}", file=sys.stderr)
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


def _command(module: str, function: str = "main") -> Callable[[Sequence[str]], int]:
    """A command that imports its module only when it is called: some import for seconds."""

    def run(arguments: Sequence[str]) -> int:
        code: int = getattr(import_module(f"sparsekit.cli.{module}"), function)(arguments)
        return code

    return run


COMMANDS = {
    "fit": _command("fit"),
    "merge": _command("merge"),
    "export": _command("export"),
    "plan": _command("fit", "plan"),
    "evaluate": _command("evaluate"),
    "report": _command("report"),
    "sweep": _command("sweep"),
    "plugins": _command("plugins"),
}
