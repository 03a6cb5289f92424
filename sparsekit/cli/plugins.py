"""`sparsekit plugins list|check|new`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sparsekit.cli.common import Parser, warn_of_plugins
from sparsekit.files import expanded
from sparsekit.plugins import listing
from sparsekit.plugins.registry import ALL_GROUPS, Kind


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError where the arguments are wrong."""
    warn_of_plugins()
    options = _parser().parse_args(list(arguments))
    if options.command == "new":
        from sparsekit.plugins.scaffold import create

        print(create(options.name, options.kind, expanded(options.out)))
        return 0
    kinds: list[Kind] = [options.kind] if options.kind else list(ALL_GROUPS)
    if options.command == "check":
        from sparsekit.testing.command import check

        return check(options.name, kinds)
    plugins = listing.everything(kinds)
    rows = [listing.row(plugin) for plugin in plugins]
    print(json.dumps(rows, indent=2) if options.json else listing.text(plugins, rows))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="sparsekit plugins",
        description="Pruning methods, merges, tasks, data sets, allocations, schedules, export formats and models.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lister = commands.add_parser("list", help="what is installed")
    lister.add_argument("--kind", choices=list(ALL_GROUPS), help="of one kind only")
    lister.add_argument("--json", action="store_true", help="print JSON rows")
    checker = commands.add_parser("check", help="hold an installed plugin against the contract")
    checker.add_argument("name", metavar="NAME", help="what --method, or the option of its kind, calls it")
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
