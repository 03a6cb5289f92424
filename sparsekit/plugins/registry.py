"""Find plugins by entry points, or by `module:name`; a plugin is imported only when it is chosen.

`entrypoints` reads all installed metadata at once and fails if one file is malformed. Then the files are read one
distribution at a time, so that a broken distribution costs only a warning.
"""

from __future__ import annotations

import glob
import importlib
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, Literal

import entrypoints

from sparsekit.errors import UserError, first_line, nearest
from sparsekit.plugins.objects import allow_import, find_object, is_object

Kind = Literal["method", "merge", "task", "dataset", "allocation", "schedule", "format", "model"]
GROUPS: dict[Kind, str] = {"method": "sparsekit.methods", "merge": "sparsekit.merges", "task": "sparsekit.tasks"}
"""The kinds that are classes, each chosen by the option of its name."""
ALL_GROUPS: dict[Kind, str] = GROUPS | {
    "dataset": "sparsekit.datasets",
    "allocation": "sparsekit.allocations",
    "schedule": "sparsekit.schedules",
    "format": "sparsekit.formats",
    "model": "sparsekit.models",
}
"""With functions, the records of export formats, and the modules that register models with timm."""
NOUNS: dict[Kind, str] = {"dataset": "function", "allocation": "function", "schedule": "function", "format": "FORMAT"}
"""What an entry point names behind its module: a class, unless it is one of these; of models nothing."""
GROUP_OF_OPTIONS: dict[Kind, str] = {"dataset": "data"}
"""The group of a kind's own options, where it has not the kind's name."""
BUILT_IN: dict[Kind, dict[str, str]] = {
    "dataset": {
        "digits": "Handwritten digits of 8×8 pixels, which come with sparsekit.",
        "fashion_mnist": "Fashion-MNIST, read from --data.root.",
        "mnist": "MNIST, read from --data.root.",
        "cifar10": "CIFAR-10, read from --data.root.",
        "cifar100": "CIFAR-100, read from --data.root.",
        "imagefolder": "Images in one folder a class.",
    },
    "allocation": {
        "global": "The highest scores of the whole model stay.",
        "uniform": "Every layer keeps the same fraction.",
        "erk": "Layers keep by the Erdős-Rényi kernel (arXiv 1911.11134).",
        "lamp": "The highest scores stay, normalised within each layer (arXiv 2010.07611).",
    },
    "schedule": {
        "cosine": "Half a cosine, from 1 to --optimizer.min_lr.",
        "linear": "A straight line, from 1 to --optimizer.min_lr.",
        "constant": "1 throughout.",
    },
    "format": {
        "timm": "A directory that timm.create_model loads.",
        "onnx": "ONNX with unchanged weights.",
        "torch": "A torch.export program with a dynamic batch size.",
        "sparse": "Compressed safetensors.",
        "2:4": "A directory for the semi-structured units of CUDA devices.",
        "slim": "A directory of the network without its pruned channels.",
    },
}
"""What is no plugin, and what it does; no plugin may have these names."""
_OPTIONS: dict[Kind, str] = {
    "dataset": "--data.name",
    "allocation": "--masks.allocation",
    "schedule": "--optimizer.schedule",
    "model": "--model.name",
}
_PATTERNS = ("*.dist-info", "*.egg-info")


@dataclass(frozen=True)
class Plugin:
    """One entry point, not imported.

    Attributes:
        name: The plugin's name for `--method` or another option that chooses one.
        kind: A key of `ALL_GROUPS`.
        target: `module:Class`, or what `NOUNS` says in place of the class; of models `module`.
        distribution: Name of the package that provides it; empty where it was given as `module:name`.
        version: Version of that package.
        flaw: What is wrong with the entry point itself; empty if it is valid.
    """

    name: str
    kind: Kind
    target: str
    distribution: str
    version: str
    flaw: str = ""

    @property
    def class_path(self) -> str:
        """The target as a dotted path."""
        return self.target.replace(":", ".")

    def load(self) -> Any:
        """Import the class, the function, the format's record or the module.

        Raises:
            UserError: it cannot be imported; the message has the distribution and the reason.
        """
        module, _, attribute = self.target.partition(":")
        if not self.distribution:
            found = find_object(option_of(self.kind), self.target)
        else:
            try:
                found = importlib.import_module(module)
                found = getattr(found, attribute) if attribute else found
            except Exception as error:  # a plugin may fail in any way while it is imported
                raise UserError(f"{self}: cannot import {self.target}: {type(error).__name__}: {error}") from error
        if self.kind in GROUPS and not isinstance(found, type):
            raise UserError(f"{self}: {self.target} is {type(found).__name__}, not a class")
        is_function = isinstance(found, FunctionType) or (self.kind != "dataset" and callable(found))
        if NOUNS.get(self.kind) == "function" and (not is_function or isinstance(found, type)):
            raise UserError(f"{self}: {self.target} is {type(found).__name__}, not a function")
        return found

    def __str__(self) -> str:
        if not self.distribution:
            return f"{option_of(self.kind)} {self.name}"
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"


def option_of(kind: Kind) -> str:
    """The option that chooses a plugin of a kind, such as `--method`."""
    return _OPTIONS.get(kind, f"--{kind}")


@dataclass(frozen=True)
class Discovery:
    """The installed plugins.

    Attributes:
        plugins: Sorted by kind, name, distribution and version.
        warnings: One line for each entry point or file that is malformed.
    """

    plugins: tuple[Plugin, ...]
    warnings: tuple[str, ...]

    def of(self, kind: Kind) -> dict[str, list[Plugin]]:
        """The valid plugins of one kind by name, with those that were adopted; several where distributions share it."""
        found: dict[str, list[Plugin]] = {}
        for plugin in (*self.plugins, *_ADOPTED):
            if plugin.kind == kind and not plugin.flaw:
                found.setdefault(plugin.name, []).append(plugin)
        return found


_ADOPTED: list[Plugin] = []


def adopt(kind: Kind, name: str) -> None:
    """Take what is given as `module:name` for a plugin of that name; another text is left alone.

    Raises:
        UserError: the module is one of Python's own.
    """
    if not is_object(name) or any((plugin.kind, plugin.name) == (kind, name) for plugin in _ADOPTED):
        return
    allow_import(option_of(kind), name)
    _ADOPTED.append(Plugin(name, kind, name, "", ""))


@lru_cache(maxsize=1)
def discover() -> Discovery:
    """Read the entry points of all installed distributions, once per process."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True):
        try:
            found = list(_plugins(entrypoints.iter_files_distros(), notes))
        except Exception:  # a malformed file may raise anything; reading one by one finds and names it
            notes.clear()
            found = list(_plugins(_one_by_one(notes), notes))
    order = sorted(set(found), key=lambda p: (p.kind, p.name, p.distribution, p.version))
    return Discovery(tuple(order), tuple(notes))


def not_installed(what: str, name: str, known: Collection[str]) -> UserError:
    """The error where there is no plugin of that name; it says where one of another kind is called so."""
    others = [f"a {plugin.kind}" for plugin in discover().plugins if plugin.name == name]
    hint = f" There is {' and '.join(others)} of this name." if others else nearest(name, known)
    installed = ", ".join(sorted(each for each in known if ":" not in each))
    return UserError(f"{what} {name!r} is not installed.{hint} Installed: {installed}.")


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of that name, or given as `module:name`; raises UserError if there is none or more than one."""
    adopt(kind, name)
    known, option = discover().of(kind), option_of(kind)
    if name not in known:
        for plugin in discover().plugins:
            if (plugin.kind, plugin.name) == (kind, name):
                raise UserError(f"{option} {name!r}: {plugin.distribution} {plugin.version}: {plugin.flaw}")
        raise not_installed(option, name, known)
    owners = known[name]
    if len(owners) > 1:
        both = " and ".join(f"{p.distribution} {p.version}" for p in owners)
        raise UserError(f"{option} {name!r} is provided by {both}; uninstall one of them")
    return owners[0]


def name_of(kind: Kind, class_path: str) -> str:
    """The plugin name of a class given by a dotted path; the path itself if it is not installed."""
    defined = defined_as(class_path)
    for name, owners in discover().of(kind).items():
        if any({class_path, defined} & {plugin.class_path, defined_as(plugin.class_path)} for plugin in owners):
            return name
    return class_path


def defined_as(path: str) -> str:
    """Where a class is defined that may be imported from several modules; the text itself while it is not imported."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else path


_Files = Iterator[tuple[entrypoints.CaseSensitiveConfigParser, entrypoints.Distribution]]


def _plugins(files: _Files, notes: list[str]) -> Iterator[Plugin]:
    for parser, owner in files:
        notes.extend(
            f"{owner.name} {owner.version}: plugins of the entry point group {group!r} are not found.{meant}"
            for group in parser.sections()
            if group not in ALL_GROUPS.values() and (meant := _meant(group))
        )
        for kind, group in ALL_GROUPS.items():
            for name, value in parser.items(group, raw=True) if group in parser else ():
                target, flaw = _target(kind, name, value, owner)
                if flaw:
                    notes.append(f"{owner.name} {owner.version}: {flaw}")
                yield Plugin(name, kind, target, owner.name.replace("_", "-"), owner.version or "?", flaw)


@lru_cache(maxsize=1024)
def _meant(group: str) -> str:
    """Which group a misspelt one is most likely meant to be; empty for groups of other programs."""
    letters = re.sub(r"\W|_", "", group.lower())
    if len({*letters[: len("sparsekit")]} & {*"sparsekit"}) < 6:  # nothing like it
        return ""
    from difflib import get_close_matches  # only now: few groups are misspelt

    if not get_close_matches(letters[: len("sparsekit")], ["sparsekit"], cutoff=0.85):
        return ""
    near = get_close_matches(group.lower(), ALL_GROUPS.values(), 1, 0.8)
    *groups, last = ALL_GROUPS.values()
    return f" Did you mean {near[0]!r}?" if near else f" Groups are {', '.join(groups)} and {last}."


def _target(kind: Kind, name: str, value: str, owner: entrypoints.Distribution) -> tuple[str, str]:
    """The target as `module:Class`, of models as `module`, and what is wrong with the entry point, or ""."""
    malformed = f"entry point {name!r} is malformed: {value!r}"
    try:
        entry = entrypoints.EntryPoint.from_string(value, name, owner)
    except entrypoints.BadEntryPoint:
        return value, malformed
    if kind == "model":
        return (value, f"{malformed}; write module") if entry.object_name else (entry.module_name, "")
    if not entry.object_name or "." in entry.object_name:
        return value, f"{malformed}; write module:{NOUNS.get(kind, 'Class')}"
    if not re.fullmatch(r"[\w-]+", name):
        return value, f"{malformed}; a name has letters, digits, _ and - only"
    if name in BUILT_IN.get(kind, ()):
        what = "data set" if kind == "dataset" else kind
        return value, f"entry point {name!r} is the name of a built-in {what}; choose another"
    return f"{entry.module_name}:{entry.object_name}", ""


def _one_by_one(notes: list[str]) -> _Files:
    seen: set[str] = set()
    for folder, pattern in ((f, p) for f in sys.path for p in _PATTERNS):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern, "entry_points.txt"))):
            stem = os.path.splitext(os.path.basename(os.path.dirname(path)))[0]
            owner = entrypoints.Distribution.from_name_version(stem)
            if owner.name in seen:  # the first on the path counts, as for imports
                continue
            seen.add(owner.name)
            parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
            try:
                parser.read([path])
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                notes.append(f"plugins of {owner.name} are ignored: malformed {path} ({reason})")
            else:
                yield parser, owner
