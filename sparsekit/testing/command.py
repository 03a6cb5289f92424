"""`sparsekit plugins check NAME`: the rules in a process of their own, so that a plugin that dies ends no other."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sparsekit.config.options import FitConfig, describe
from sparsekit.config.parser import build, parse_as
from sparsekit.errors import UserError
from sparsekit.plugins.objects import is_object
from sparsekit.plugins.registry import GROUP_OF_OPTIONS, GROUPS, Kind, Plugin, discover, find, not_installed, option_of
from sparsekit.testing import check_rules
from sparsekit.testing.rules import THROUGH

TIME_LIMIT = 600.0
"""Seconds after which a check is stopped."""


def check(name: str, kinds: Sequence[Kind], arguments: Sequence[str] = ()) -> int:
    """Check every plugin of that name, or what `module:name` names, and print a line a rule.

    Args:
        name: The name.
        kinds: The kinds to look among.
        arguments: Options that the plugin is made with, as `fit` takes them: `["--method.start", "0.2"]`.

    Returns:
        0 where all rules pass, 1 where one does not, 2 where an option is wrong, which is printed.

    Raises:
        UserError: no plugin has the name, two distributions provide it, or the options are those of another kind.
    """
    if is_object(name):
        if len(kinds) != 1:
            raise UserError(f"plugins check {name}: give --kind, as it is in no package")
        plugins = [find(kinds[0], name)]
    else:
        known = [plugin for plugin in discover().plugins if plugin.kind in kinds]
        chosen = {plugin.kind: plugin for plugin in known if plugin.name == name}
        if not chosen:
            names = sorted({plugin.name for plugin in known})
            raise not_installed("plugin", name, names)
        plugins = [plugin if plugin.flaw else find(plugin.kind, name) for plugin in chosen.values()]
    for flag in (argument for argument in arguments if argument.startswith("--")):
        owners = [plugin for plugin in plugins if flag.startswith(f"--{_group(plugin.kind)}.")]
        if not owners:
            kind = plugins[0].kind
            has = f"its options are --{_group(kind)}.NAME" if kind in (*GROUPS, *GROUP_OF_OPTIONS) else "it has none"
            raise UserError(f"{flag.partition('=')[0]}: {name!r} is a {kind}; {has}")
        plugins = owners
    return max([_check_in_a_process(plugin, arguments) for plugin in plugins])


def _group(kind: Kind) -> str:
    """The group of a kind's own options."""
    return GROUP_OF_OPTIONS.get(kind, kind)


def _check_in_a_process(plugin: Plugin, arguments: Sequence[str]) -> int:
    print(plugin, flush=True)
    if plugin.flaw:
        return _fail(plugin.flaw)
    # exactly the caller's path, without what -c puts in front
    code = f"import sys; sys.path[:] = {sys.path!r}; from sparsekit.testing import command; "
    code += f"sys.exit(command.check_here({plugin.kind!r}, {plugin.name!r}, {list(arguments)!r}))"
    try:
        status = subprocess.run([sys.executable, "-c", code], timeout=TIME_LIMIT).returncode
    except subprocess.TimeoutExpired:
        return _fail(f"it was stopped after {TIME_LIMIT:g} seconds; a check takes less than 60")
    if status < 0:
        return _fail(f"the process was ended by {signal.Signals(-status).name}")
    return min(status, 2)


def _options(plugin: Plugin, arguments: Sequence[str]) -> dict[str, Any]:
    """The options that are given, parsed and checked as those of `fit`; raises UserError as that does."""
    if not arguments:
        return {}
    parser = build("sparsekit plugins check", "")
    config = parse_as(FitConfig, parser, [option_of(plugin.kind), plugin.name, *arguments])
    every = describe(config)["data" if plugin.kind not in GROUPS else plugin.kind]
    start = f"--{_group(plugin.kind)}."
    given = {a.partition("=")[0].removeprefix(start).partition(".")[0] for a in arguments if a.startswith(start)}
    return {name: value for name, value in every.items() if name in given}


def check_here(kind: Kind, name: str, arguments: Sequence[str] = ()) -> int:
    """Check one plugin in this process, and print a line a rule; the result is as of `check`."""
    try:
        plugin = find(kind, name)
        found = plugin.load()
    except UserError as error:
        return _fail(str(error))
    if kind == "model":  # a module that registers models, and does nothing else
        print("  pass     it is imported")
        return 0
    try:
        options = _options(plugin, arguments)
    except UserError as error:
        print(f"sparsekit: error: {error}", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    states: Counter[str] = Counter()
    places: set[str] = set()  # one exception may break every rule: its place is printed once
    for outcome in check_rules(kind, found, **options):
        states[outcome.state] += 1
        print(f"  {outcome.state:8} {outcome.rule}", flush=True)
        found = [line for line in outcome.finding.splitlines() if line not in places]
        places.update(line for line in found if line.startswith(THROUGH))
        for line in [outcome.requirement, "but:", *found] if outcome.state == "FAIL" else found:
            print(f"{'':13}{line}", flush=True)
    passed, failed, skipped = (states[state] for state in ("pass", "FAIL", "skipped"))
    print(f"  {passed} of {states.total()} rules pass" + (f", {failed} broken, {skipped} skipped" * (failed > 0)))
    return min(failed, 1)


def _fail(reason: str) -> int:
    print(f"  FAIL     {reason}")
    return 1
