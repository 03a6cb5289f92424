"""Walk folders of images: which files Pillow reads, what is passed over, and links. Does not import torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from pathlib import Path

from PIL import Image

from sparsekit.errors import UserError, printable

LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "recycler", "system volume information"),
    *("__macosx", "lost+found", "network trash folder", "temporary items", "@eadir", "@recycle", "@recently-snapshot"),
    *("#recycle", "#snapshot", "~snapshot", "__pycache__"),
}
"""Names, in lower case, that operating systems and file servers leave behind; those that begin with a dot are too."""
_NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow only identifies, or leaves to another program."""
_KINDS = 8
Tree = dict[tuple[str, ...], list[str]]
"""The names of the images in a folder and in all folders below it, by the parts of their folder's path."""


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the files that Pillow reads, in lower case with their dot."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset({".mpo", *(suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NO_DECODER)})


@dataclass
class Walk:
    """Walks the folders of a data set, each real folder once, and counts what it passes over.

    Attributes:
        by_path: Whether each path is a class of its own, or each folder right below the one that is walked.
        passed: How many files and folders were passed over, by kind.
    """

    by_path: bool = False
    passed: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, tuple[str, object]] = field(default_factory=dict)
    _links: list[tuple[str, str, object, list[str]]] = field(default_factory=list)

    def images(self, folders: Mapping[str, Path]) -> dict[str, Tree]:
        """The images in some folders, each once: those of each folder under its key, as `Tree` says.

        Links are followed, except to a folder around them, and to what was read already for the same class.

        Raises:
            UserError: a folder cannot be read, a link leads nowhere, or a file or folder would have two labels.
        """
        found = {key: self._tree(folder) for key, folder in folders.items()}
        first: dict[str, tuple[str, object]] = {}
        for target, path, owner, names in sorted(self._links, key=itemgetter(1)):
            where, name = os.path.split(target)
            other = first.setdefault(target, (path, owner))
            if where in self._seen and not is_litter(name) and is_image(name):
                other = os.path.join(self._seen[where][0], name), self._seen[where][1]
            if not self._is_first(path, owner, *other):
                names.remove(os.path.basename(path))
                self.passed["link to an image that is read already"] += 1
        return found

    def _tree(self, folder: Path) -> Tree:
        found: Tree = {}
        left: list[tuple[tuple[str, ...], str]] = [((), os.path.realpath(folder))]
        while left:
            parts, real = left.pop()
            path = str(folder.joinpath(*parts))
            owner = (folder, parts if self.by_path else parts[:1])
            if not self._is_first(path, owner, *self._seen.setdefault(real, (path, owner))):
                self.passed["link to a folder that is read already"] += 1
                continue
            names = found[parts] = []
            for entry, is_folder in entries(path):
                if is_litter(entry.name):
                    self.passed[kind_of(entry.name, is_folder)] += 1
                elif is_folder:
                    target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                    if os.path.commonpath([target, real]) == target:
                        self.passed["link to a folder around it"] += 1
                    else:
                        left.append(((*parts, entry.name), target))
                elif is_image(entry.name) and entry.is_file():
                    names.append(entry.name)
                    if entry.is_symlink():
                        self._links.append((os.path.realpath(entry.path), entry.path, owner, names))
                else:
                    self.passed[kind_of(entry.name)] += 1
        return found

    def passed_text(self) -> str:
        """What was passed over, such as `passed over: 12 .txt, 1 @eaDir/`; empty for nothing."""
        kinds = sorted(self.passed.items(), key=lambda item: (-item[1], item[0]))
        texts = [f"{count:,} {printable(kind)}" for kind, count in kinds[:_KINDS]]
        if more := kinds[_KINDS:]:
            texts.append(f"{sum(count for _, count in more):,} of {len(more):,} more kinds")
        return f"passed over: {', '.join(texts)}" if texts else ""

    @staticmethod
    def _is_first(path: str, owner: object, first: str, known: object) -> bool:
        """Whether a path is the first one to a file or folder; raises UserError where the first has another label."""
        if path == first:
            return True
        if known != owner:
            raise UserError(
                f"--data.root: {first!r} and {path!r} are one and the same, which would be in two classes or splits; "
                "remove one of the two"
            )
        return False


def entries(path: str) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """What is in a folder, each with whether it is a folder or a link to one.

    Raises:
        UserError: the folder cannot be read, or a link in it leads nowhere.
    """
    try:
        with os.scandir(path) as found:
            for entry in found:
                if entry.is_symlink() and not is_litter(entry.name) and not os.path.exists(entry.path):
                    raise UserError(
                        f"--data.root: {entry.path!r} is a link to {os.readlink(entry.path)!r}, which is not there; "
                        "mend the link, or remove it"
                    )
                yield entry, entry.is_dir()
    except OSError as error:
        raise UserError(
            f"--data.root: {path!r} cannot be read ({error.strerror}); make it readable, or move it away"
        ) from error


def is_image(name: str) -> bool:
    """Whether Pillow reads a file of this name."""
    return os.path.splitext(name)[1].lower() in suffixes()


def is_litter(name: str) -> bool:
    """Whether a name is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.casefold() in LITTER


def kind_of(name: str, is_folder: bool = False) -> str:
    """The kind under which a file or folder is counted that was passed over."""
    if is_folder:
        return f"{name}/"
    if name.startswith("."):
        return "hidden"
    return name if is_litter(name) else os.path.splitext(name)[1].lower() or "without a suffix"
