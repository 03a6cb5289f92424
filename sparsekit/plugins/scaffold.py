"""`sparsekit plugins new`: write an installable package with plugins of one name, whose tests pass."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

import sparsekit
from sparsekit.errors import UserError
from sparsekit.plugins.registry import ALL_GROUPS, BUILT_IN, GROUPS, Kind, discover

TRIES: dict[Kind, str] = {
    "method": "sparsekit plan --method {}",
    "merge": "sparsekit fit --merge {}",
    "task": "sparsekit fit --task {}",
    "dataset": "sparsekit fit --data.name {}",
    "allocation": "sparsekit fit --masks.allocation {}",
    "schedule": "sparsekit plan --optimizer.schedule {}",
    "format": "sparsekit export RUN --format {} -o OUT",
    "model": "sparsekit fit --model.name {}",
}
"""The command that uses a plugin of each kind."""
_IMPORTED = {*sparsekit.__all__, "Any", "ClassVar", "ErrorMeter", "Mapping", "Path", "Sequence"}
_NAMES = {"copy", "load", "math", "nn", "np", "prod", "pytest", "register_model", "sqrt", "torch", "timm", "write"}
"""What the modules of functions use under names of their own."""


def create(given: str, kinds: Sequence[Kind], out: Path) -> str:
    """Write the package `sparsekit-NAME` into a new folder below `out`; returns the next commands to run, as text.

    Args:
        given: The plugins' name; hyphens count as underscores, and `sparsekit-` in front is the package's alone.
        kinds: What it is; of several kinds each has a module of its own.
        out: Where the folder goes.

    Raises:
        UserError: the name is invalid or in use, or the folder exists or cannot be made.
    """
    kinds = list(dict.fromkeys(kinds))
    name = re.sub(r"^sparsekit_(?=.)", "", given.replace("-", "_"))
    if not re.fullmatch(r"[a-z](\w*[a-z0-9])?", name, re.ASCII) or keyword.iskeyword(name) or name != name.lower():
        raise UserError(
            f"plugins new {given!r}: give a lowercase Python name that is no keyword, such as my_{kinds[0]}"
        )
    distribution, package = f"sparsekit-{re.sub('_+', '-', name)}", f"sparsekit_{name}"
    folder = out / distribution
    for clash in _clashes(name, kinds, package):
        raise UserError(f"plugins new {given}: {clash}; choose another name")
    try:
        folder.mkdir(parents=True)
        for path, text in _texts(name, kinds, distribution, package).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except FileExistsError as error:
        raise UserError(
            f"plugins new {given}: {error.filename} is there already; choose another name or --out"
        ) from error
    except OSError as error:
        raise UserError(
            f"plugins new {given}: cannot write {folder}: {error.strerror}; choose another --out"
        ) from error
    lines = [f"wrote {folder}"]
    for kind in kinds:
        where = folder / package / _file(kind, kinds)
        lines.append(f"{kind + ' ' + repr(name) + ' is':24} {object_name(name, kind)} in {where}")
    lines.append(f"install:  pip install -e {folder}")
    lines += [f"try:      {_try(name, kind)}" for kind in kinds]
    lines += [f"check:    sparsekit plugins check {name} --kind {kind}" for kind in kinds]
    return "\n".join(lines)


def class_name(name: str) -> str:
    """`my_method` as `MyMethod`, with `Plugin` added to a keyword and to a name that the module imports."""
    words = "".join(word.capitalize() for word in name.split("_"))
    return f"{words}Plugin" if keyword.iskeyword(words) or words in _IMPORTED else words


def object_name(name: str, kind: Kind) -> str:
    """What the module calls the plugin: a class, a function, or `FORMAT`."""
    if kind in GROUPS:
        return class_name(name)
    return "FORMAT" if kind == "format" else f"{name}_{kind}" if name in _NAMES else name


def _try(name: str, kind: Kind) -> str:
    return TRIES[kind].format(object_name(name, kind) if kind == "model" else name)


def _texts(name: str, kinds: Sequence[Kind], distribution: str, package: str) -> dict[str, str]:
    """The package's files and their content."""
    entries, words = "", {"name": name, "package": package, "distribution": distribution, "cls": class_name(name)}
    texts: dict[str, str] = {}
    for kind in kinds:
        module = package if len(kinds) == 1 else f"{package}.{kind}"
        own = words | {"kind": kind, "module": module, "object": object_name(name, kind)}
        target = module if kind == "model" else f"{module}:{own['object']}"
        entries += f'[project.entry-points."{ALL_GROUPS[kind]}"]\n{name} = "{target}"\n\n'
        test = f"tests/test_{name}.py" if len(kinds) == 1 else f"tests/test_{name}_{kind}.py"
        texts[f"{package}/{_file(kind, kinds)}"] = _filled(f"{kind}.py", own)
        texts[test] = _filled(f"{kind}_test.py", own)
    if len(kinds) > 1:
        texts[f"{package}/__init__.py"] = f'"""Plugins for sparsekit, called `{name}`: one of each of some kinds."""\n'
    tries = [f"sparsekit plugins list --kind {kind}\n{_try(name, kind)}" for kind in kinds]
    whole = words | {"kinds": ", ".join(kinds), "entries": entries.removesuffix("\n"), "tries": "\n".join(tries)}
    return texts | {file: _filled(file, whole) for file in ("pyproject.toml", "README.md")}


def _filled(template: str, values: dict[str, str]) -> str:
    text = (files("sparsekit.plugins") / "templates" / f"{template}.txt").read_text("utf-8")
    return Template(text).substitute(values)


def _file(kind: Kind, kinds: Sequence[Kind]) -> str:
    return "__init__.py" if len(kinds) == 1 else f"{kind}.py"


def _clashes(name: str, kinds: Sequence[Kind], package: str) -> list[str]:
    """What is already installed under these names."""
    notes = [f"{kind} {name!r} is built in" for kind in kinds if name in BUILT_IN.get(kind, ())]
    notes += [f"{plugin} is installed already" for kind in kinds for plugin in discover().of(kind).get(name, ())]
    return notes or ([f"a package {package!r} is installed already"] if find_spec(package) else [])
