"""`sparsekit plugins check NAME`: the rules in a process of their own, so that no plugin can harm the caller's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from sparsekit.errors import UserError, nearest
from sparsekit.plugins.registry import Kind, Plugin, discover, find
from sparsekit.testing import check_rules
from sparsekit.testing.rules import THROUGH

TIME_LIMIT = 600.0
"""Seconds after which a plugin that never ends is stopped."""
_CHILD = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])  # exactly the caller's, without what -c puts in front
from sparsekit.testing.command import child
sys.exit(child(*sys.argv[2:]))
"""


def check(name: str, kinds: Sequence[Kind]) -> int:
    """Check every plugin of that name, and print rule by rule; 0 where all rules pass, 1 where one does not.

    Raises:
        UserError: there is no such plugin, or two distributions provide it.
    """
    known = [plugin for plugin in discover().plugins if plugin.kind in kinds]
    chosen = {plugin.kind: plugin for plugin in known if plugin.name == name}
    if not chosen:
        names = sorted({plugin.name for plugin in known})
        raise UserError(f"plugin {name!r} is not installed.{nearest(name, names)} Installed: {', '.join(names)}.")
    plugins = [plugin if plugin.flaw else find(plugin.kind, name) for plugin in chosen.values()]
    return max([_in_a_process(plugin) for plugin in plugins])


def _in_a_process(plugin: Plugin) -> int:
    print(plugin, flush=True)
    if plugin.flaw:
        print(f"  FAIL     {plugin.flaw}")
        return 1
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), plugin.kind, plugin.name]
    try:
        code = subprocess.run(command, timeout=TIME_LIMIT).returncode
    except subprocess.TimeoutExpired:
        print(f"  FAIL     it was stopped after {TIME_LIMIT:g} seconds; a check takes less than 60")
        return 1
    if code < 0:
        print(f"  FAIL     the process was ended by {signal.Signals(-code).name}")
    return 0 if code == 0 else 1


def child(kind: Kind, name: str) -> int:
    """Check one plugin in this process."""
    try:
        cls = find(kind, name).load()
    except UserError as error:
        print(f"  FAIL     {error}")
        return 1
    import torch

    torch.set_num_threads(1)  # the problem is tiny: more threads only wait for one another
    states: Counter[str] = Counter()
    places: set[str] = set()  # one exception may break every rule: where it came from is told once
    for outcome in check_rules(kind, cls):
        states[outcome.state] += 1
        print(f"  {outcome.state:8} {outcome.rule}", flush=True)
        if outcome.state != "pass":
            told = [outcome.asks, "but:"] if outcome.state == "FAIL" else []
            did = [line for line in outcome.did.splitlines() if line not in places]
            places.update(line for line in did if line.startswith(THROUGH))
            for line in [*told, *did]:
                print(f"{'':13}{line}", flush=True)
    passed, failed, skipped = (states[state] for state in ("pass", "FAIL", "skipped"))
    print(f"  {passed} of {states.total()} rules pass" + (f", {failed} broken, {skipped} skipped" * (failed > 0)))
    return 1 if failed else 0
