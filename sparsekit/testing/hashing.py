"""Whether a plugin chooses otherwise in processes that hash text otherwise, as those of two runs do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from typing import Any

from sparsekit.testing.rules import Skipped


def class_differs(case: Any) -> bool:
    """Whether a class chooses otherwise in other processes; True where it cannot be imported there.

    What differs under other names may follow from the names themselves, as a seed that is made of one does.
    """
    if not _is_importable(case.cls):
        return True
    found = _digests(case, case.cls, case.options)
    first = next(found)
    return any(each != first for each in found)


def function_differs(case: Any, *options: dict[str, Any]) -> bool:
    """Whether a function, whose case takes `options`, returns something else in other processes.

    Raises:
        Skipped: it cannot be imported there, or fails there.
    """
    if not _is_importable(case.function):
        raise Skipped("no other process can import it, to hash names otherwise; give it a name in a module")
    digests = set()
    for digest, error in _digests(case, case.function, *options):
        if error:
            raise Skipped(f"in a process of its own it fails: {error.splitlines()[-1]}")
        digests.add(digest)
        if len(digests) > 1:
            return True
    return False


def _is_importable(plugin: Any) -> bool:
    """Whether its module and its name lead to it."""
    name = getattr(plugin, "__module__", None) or "__main__"
    path = getattr(plugin, "__qualname__", "").split(".")
    found = reduce(lambda owner, part: getattr(owner, part, None), path, sys.modules.get(name))
    return name != "__main__" and found is plugin


def _digests(case: Any, plugin: Any, *options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The digest that a case of a plugin has in three processes, in turn, and what each said of an error."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from importlib import import_module; from functools import reduce; "
        f"from {type(case).__module__} import {type(case).__name__} as Case; "
        f"plugin = reduce(getattr, {plugin.__qualname__!r}.split('.'), import_module({plugin.__module__!r})); "
        f"print(Case(plugin, *{options!r}).digest())"
    )
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        yield done.stdout.strip(), done.stderr if done.returncode else ""
