"""List the installed plugins as rows and as text, from metadata and source, without importing them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from sparsekit._version import __version__
from sparsekit.plugins.registry import BUILT_IN, GROUP_OF_OPTIONS, Kind, Plugin, discover
from sparsekit.plugins.signatures import fault_of, options_of, summary_of, unclear


def everything(kinds: Sequence[Kind]) -> list[Plugin]:
    """The installed plugins of some kinds, and what is built in without being one, which has no target."""
    own = [Plugin(name, kind, "", "sparsekit-soups", __version__) for kind in kinds for name in BUILT_IN.get(kind, ())]
    found = [plugin for plugin in discover().plugins if plugin.kind in kinds]
    return sorted([*own, *found], key=lambda plugin: (plugin.kind, plugin.name))


def row(plugin: Plugin) -> dict[str, str]:
    """One plugin as a row: name, kind, distribution, version, summary, state.

    The state is `malformed` if the entry point or the module's source shows that the plugin cannot be loaded,
    `duplicate` if two distributions use its name, else `found`.
    """
    clash = len(discover().of(plugin.kind).get(plugin.name, ())) > 1
    return {
        "name": plugin.name,
        "kind": plugin.kind,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "summary": summary_of(plugin) if plugin.target else BUILT_IN[plugin.kind][plugin.name],
        "state": "malformed" if _fault(plugin) else "duplicate" if clash else "found",
    }


def _fault(plugin: Plugin) -> str:
    return fault_of(plugin) if plugin.target or plugin.flaw else ""


def help_of(plugin: Plugin) -> str:
    """A plugin's docstring and options. Imports the plugin; raises UserError if that fails."""
    about = inspect.getdoc(plugin.load()) or "(no docstring)"
    return "\n".join([str(plugin), "", about, "", *(options_text(plugin, indent=0) or ["It has no options."])])


def options_text(plugin: Plugin, indent: int) -> list[str]:
    """One line per option: name, type and default, indented by `indent` spaces."""
    group = GROUP_OF_OPTIONS.get(plugin.kind, plugin.kind)
    return [
        f"{' ' * indent}--{group}.{o.name}{o.annotation and f': {o.annotation}'}{o.default and f' = {o.default}'}"
        for o in options_of(plugin).values()
    ]


def text(found: Sequence[Plugin], rows: Sequence[dict[str, str]]) -> str:
    """A listing for the user: for each plugin its name and distribution, its summary, and its options."""
    lines = []
    width = max((len(plugin.name) for plugin in found), default=0)
    kinds = max(6, *(len(plugin.kind) for plugin in found)) if found else 0
    for plugin, values in zip(found, rows, strict=True):
        state = "" if values["state"] == "found" else f"  [{values['state']}]"
        lines.append(f"{plugin.kind:{kinds}}  {plugin.name:{width}}  {plugin.distribution} {plugin.version}{state}")
        lines.append(f"        {_fault(plugin) or values['summary'] or '(no docstring)'}")
        pointer = (
            [f"{' ' * 10}its options: sparsekit fit --{plugin.kind}.help {plugin.name}"] if unclear(plugin) else []
        )
        lines += options_text(plugin, indent=10) or pointer
    return "\n".join(line.rstrip() for line in lines)
