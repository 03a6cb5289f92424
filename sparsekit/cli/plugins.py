"""`sparsekit plugins list|check|new`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sparsekit.cli.common import Parser, warn_of_plugins
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.plugins import listing
from sparsekit.plugins.registry import ALL_GROUPS, Kind


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError where the arguments are wrong."""
    warn_of_plugins()
    arguments, own = _apart(arguments)
    options = _parser().parse_args(arguments)
    if own and options.command != "check":
        raise UserError(f"{own[0]}: plugins {options.command} takes no options of a plugin; plugins check does")
    if options.command == "new":
        from sparsekit.plugins.scaffold import create

        print(create(options.name, options.kind, expanded(options.out)))
        return 0
    kinds: list[Kind] = [options.kind] if options.kind else list(ALL_GROUPS)
    if options.command == "check":
        from sparsekit.testing.command import check

        return check(options.name, kinds, own)
    plugins = listing.everything(kinds)
    rows = [listing.row(plugin) for plugin in plugins]
    print(json.dumps(rows, indent=2) if options.json else listing.text(plugins, rows))
    return 0


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments; and a plugin's options, such as `--method.start 0.2`, with their values."""
    command, own, left = list[str](), list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        found = own if argument.startswith("--") and "." in argument.partition("=")[0] else command
        found.append(argument)
        if found is own and "=" not in argument and left and not left[0].startswith("--"):
            found.append(left.pop(0))
    return command, own


def _parser() -> Parser:
    parser = Parser(
        prog="sparsekit plugins",
        description="Pruning methods, merges, tasks, data sets, allocations, schedules, export formats and models.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lister = commands.add_parser("list", help="what is installed")
    lister.add_argument("--kind", choices=list(ALL_GROUPS), help="of one kind only")
    lister.add_argument("--json", action="store_true", help="print JSON rows")
    checker = commands.add_parser(
        "check",
        help="hold a plugin against the contract",
        epilog="The plugin is made with its options, where given, as those of fit: --method.NAME VALUE.",
    )
    checker.add_argument(
        "name", metavar="NAME", help="what --method, or the option of its kind, calls it, or module:Class"
    )
    checker.add_argument("--kind", choices=list(ALL_GROUPS), help="where two kinds share the name")
    maker = commands.add_parser("new", help="write a package with a plugin of your own")
    maker.add_argument("name", metavar="NAME", help="what --method, or the option of its kind, is to call it")
    maker.add_argument(
        "--kind",
        choices=list(ALL_GROUPS),
        action="append",
        required=True,
        help="what it is; given several times, the package has one of each",
    )
    maker.add_argument("--out", metavar="DIR", default=".", help="where the package's folder goes (default: here)")
    return parser
