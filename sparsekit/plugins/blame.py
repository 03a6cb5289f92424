"""Find the installed plugin that an unexpected exception came from, by the modules of its traceback."""

from __future__ import annotations

import sys
import traceback
from types import FrameType

from sparsekit.api import Stage
from sparsekit.plugins.registry import Plugin, discover


def describe(error: BaseException) -> str | None:
    """One line for the user: the plugin, segment, hook, error, file and line; None if no plugin is in the traceback."""
    packages = {_package(p.target): p for p in discover().plugins if not p.flaw}
    packages.pop("sparsekit", None)  # our own errors keep their traceback
    frames = list(traceback.walk_tb(error.__traceback__))
    in_plugins = [(frame, line) for frame, line in frames if _package(_module(frame)) in packages]
    if not in_plugins:
        return None
    (outer, _), (inner, line) = in_plugins[0], in_plugins[-1]
    who = _plugin_of(outer) or "code of {0.distribution} {0.version}".format(packages[_package(_module(outer))])
    stages = [frame.f_locals.get("stage") for frame, _ in frames]
    where = next((f", segment {stage.index + 1}" for stage in stages if isinstance(stage, Stage)), "")
    hook = "" if outer.f_code.co_name.startswith("<") else f" {outer.f_code.co_name}()"
    text = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return f"{who}{where}:{hook} raised {text} at {inner.f_code.co_filename}:{line}; --debug shows all"


def _plugin_of(frame: FrameType) -> Plugin | None:
    """The plugin whose class `self` of a frame is an instance of, or whose function it runs."""
    owner = frame.f_locals.get("self")
    for plugin in discover().plugins:
        module, _, name = plugin.target.partition(":")
        found = getattr(sys.modules.get(module), name, None)
        if (isinstance(found, type) and isinstance(owner, found)) or getattr(found, "__code__", 0) is frame.f_code:
            return plugin
    return None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]
