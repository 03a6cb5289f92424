"""`sparsekit plugins new`: write an installable package with one plugin, whose tests pass."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

import sparsekit
from sparsekit.errors import UserError
from sparsekit.plugins.registry import Kind, discover


def create(name: str, kind: Kind, out: Path) -> str:
    """Write the package `sparsekit-NAME` into a new folder below `out`; returns the next commands to run, as text.

    Raises:
        UserError: the name is invalid or in use, or the folder exists or cannot be made.
    """
    if not re.fullmatch(r"[a-z](\w*[a-z0-9])?", name, re.ASCII) or keyword.iskeyword(name) or name != name.lower():
        raise UserError(f"plugins new {name!r}: give a lowercase Python name that is no keyword, such as my_{kind}")
    folder = out / f"sparsekit-{name}"
    package = f"sparsekit_{name}"
    values = {
        "name": name,
        "kind": kind,
        "cls": class_name(name),
        "package": package,
        "distribution": folder.name,
    }
    for clash in _clashes(name, kind, package):
        raise UserError(f"plugins new {name}: {clash}; choose another name")
    try:
        folder.mkdir(parents=True)
        for path, template in (
            (folder / "pyproject.toml", "pyproject.toml"),
            (folder / "README.md", "README.md"),
            (folder / package / "__init__.py", f"{kind}.py"),
            (folder / "tests" / f"test_{name}.py", f"{kind}_test.py"),
        ):
            text = (files("sparsekit.plugins") / "templates" / f"{template}.txt").read_text("utf-8")
            path.parent.mkdir(exist_ok=True)
            path.write_text(Template(text).substitute(values), "utf-8")
    except FileExistsError as error:
        raise UserError(
            f"plugins new {name}: {error.filename} is there already; choose another name or --out"
        ) from error
    except OSError as error:
        raise UserError(f"plugins new {name}: cannot write {folder}: {error.strerror}; choose another --out") from error
    return (
        f"wrote {folder}; the class is {values['cls']} in {folder / package / '__init__.py'}\n"
        f"install:  pip install -e {folder}\n"
        f"try:      sparsekit fit --{kind} {name}\n"
        f"check:    sparsekit plugins check {name} --kind {kind}"
    )


def class_name(name: str) -> str:
    """`my_method` as `MyMethod`, with `Plugin` added to a keyword and to a name that the module imports."""
    words = "".join(word.capitalize() for word in name.split("_"))
    taken = keyword.iskeyword(words) or words in {*sparsekit.__all__, "Any", "ClassVar", "ErrorMeter", "Sequence"}
    return f"{words}Plugin" if taken else words


def _clashes(name: str, kind: Kind, package: str) -> list[str]:
    """What is already installed under these names."""
    notes = [f"{plugin} is installed already" for plugin in discover().of(kind).get(name, ())]
    return notes or ([f"a package {package!r} is installed already"] if find_spec(package) else [])
