"""The `plugins` commands, and `plugins list` itself: what is installed, from metadata and source alone."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Sequence
from typing import NoReturn

from sparsekit.config.userpath import expanded
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUPS, Kind, Plugin, discover, find
from sparsekit.plugins.signatures import fault_of, options_of, summary_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"argument (\S+): expected one argument", r"\1 needs a value", message)
        message = re.sub(r"argument (\S+): ignored explicit argument.*", r"\1 takes no value", message)
        message = re.sub(r"unrecognized arguments: (\S+).*", r"unexpected argument '\1'", message)
        message = re.sub(r"the following arguments are required: (.*)", r"\1 must be given", message)
        message = re.sub(r"argument (\S+): invalid choice: (.*) \((.*)\)", r"\1 is \2; \3", message)
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Parse and run `plugins` commands."""
    parser = _Parser(prog="sparsekit plugins", description="Pruning methods and merge strategies.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    lister = commands.add_parser("list", help="what is installed", allow_abbrev=False)
    lister.add_argument("--kind", choices=list(GROUPS), help="methods or merges only")
    lister.add_argument("--json", action="store_true", help="print JSON rows")
    checker = commands.add_parser("check", help="hold an installed plugin against the contract", allow_abbrev=False)
    checker.add_argument("name", metavar="NAME", help="what --method or --merge calls it")
    checker.add_argument("--kind", choices=list(GROUPS), help="where a method and a merge share the name")
    maker = commands.add_parser("new", help="write a package with a plugin of your own", allow_abbrev=False)
    maker.add_argument("name", metavar="NAME", help="what --method or --merge is to call it")
    maker.add_argument("--kind", choices=list(GROUPS), required=True, help="what it is")
    maker.add_argument("--out", metavar="DIR", default=".", help="where the package's folder goes (default: here)")
    options = parser.parse_args(list(arguments))
    kinds: list[Kind] = [options.kind] if options.kind else list(GROUPS)
    if options.command == "check":
        from sparsekit.testing import command

        return command.check(options.name, kinds)
    if options.command == "new":
        from sparsekit.plugins.scaffold import create

        print(create(options.name, options.kind, expanded(options.out)))
        return 0
    found = [plugin for plugin in discover().plugins if plugin.kind in kinds]
    rows = [row(plugin) for plugin in found]
    print(json.dumps(rows, indent=2) if options.json else text(found, rows))
    return 0


def row(plugin: Plugin) -> dict[str, str]:
    """One plugin as plain data.

    `state` is `found`; `duplicate` where two distributions use its name; `malformed` where the entry point or the
    module's source says that there is no such class.
    """
    clash = len(discover().of(plugin.kind).get(plugin.name, ())) > 1
    return {
        "name": plugin.name,
        "kind": plugin.kind,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "summary": summary_of(plugin),
        "state": "malformed" if fault_of(plugin) else "duplicate" if clash else "found",
    }


def asked_help(arguments: Sequence[str]) -> str | None:
    """What `--method.help NAME` or `--merge.help NAME` asks for; None where neither is there."""
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        for kind in GROUPS:
            if flag == f"--{kind}.help":
                name = value or next(iter(arguments[place + 1 :]), "")
                if not name:
                    raise UserError(f"--{kind}.help needs a name; installed: {', '.join(discover().of(kind))}")
                return help_of(find(kind, name))
    return None


def help_of(plugin: Plugin) -> str:
    """A plugin's own words and options."""
    words = inspect.getdoc(plugin.load()) or "(no docstring)"
    return "\n".join([str(plugin), "", words, "", *(options_text(plugin, indent=0) or ["It has no options."])])


def options_text(plugin: Plugin, indent: int) -> list[str]:
    """A line an option: its name, type and default."""
    return [
        f"{' ' * indent}--{plugin.kind}.{o.name}{o.annotation and f': {o.annotation}'}{o.default and f' = {o.default}'}"
        for o in options_of(plugin).values()
    ]


def text(found: Sequence[Plugin], rows: Sequence[dict[str, str]]) -> str:
    """The same for people, names whole, options below each summary."""
    lines = []
    width = max((len(plugin.name) for plugin in found), default=0)
    for plugin, values in zip(found, rows, strict=True):
        state = "" if values["state"] == "found" else f"  [{values['state']}]"
        lines.append(f"{plugin.kind:6}  {plugin.name:{width}}  {plugin.distribution} {plugin.version}{state}")
        lines.append(f"        {fault_of(plugin) or values['summary'] or '(no docstring)'}")
        lines += options_text(plugin, indent=10)
    return "\n".join(line.rstrip() for line in lines)
