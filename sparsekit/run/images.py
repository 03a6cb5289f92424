"""`data.json.gz`, the list of a run's images: a run resumes with these alone, and all its ranks have them."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection
from pathlib import Path

from sparsekit.data.contents import Contents
from sparsekit.errors import UserError, printable
from sparsekit.files import write_whole

NAME = "data.json.gz"
_NAMED = 3


def write(out: Path, contents: Contents) -> None:
    """Write the list of the images to the run directory."""
    write_whole(out / NAME, gzip.compress(_text(contents), compresslevel=3, mtime=0))


def digest(contents: Contents) -> str:
    """The SHA-256 of the list of the images, as hexadecimal digits."""
    return hashlib.sha256(_text(contents)).hexdigest()


def check(out: Path, contents: Contents) -> str:
    """Compare the images with those that a run was started with.

    Returns:
        A warning if the run directory has no readable list; else an empty text.

    Raises:
        UserError: images went, appeared, changed, or changed their label or split.
    """
    path, text = out / NAME, _text(contents)
    try:
        if (stored := gzip.decompress(path.read_bytes())) == text:
            return ""
        old, now = json.loads(stored), json.loads(text)
        before, sizes = old["images"], old["bytes"]
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        return f"{path} cannot be read ({type(error).__name__}): whether the images are still the same is not known"
    was = {name: (split, label) for split, part in before.items() for name, label in part.items()}
    now_is = {name: (split, label) for split, part in now["images"].items() for name, label in part.items()}
    same = was.keys() & now_is.keys()
    changed = {name for name in same & sizes.keys() & now["bytes"].keys() if sizes[name] != now["bytes"][name]}
    if was.keys() == now_is.keys():  # otherwise labels are numbered, and splits cut, in another way
        changed |= {name for name in same if was[name] != now_is[name]}
    kind = "image" if sizes else "file"
    found = [
        _named(kind, names, verb)
        for verb, names in (("went", was.keys() - same), ("appeared", now_is.keys() - same), ("changed", changed))
        if names
    ]
    raise UserError(
        f"--resume: {out} was started with other images: {'; '.join(found) or 'the classes have other names'}; "
        "restore them (--data.root), or start again with another --out"
    )


def _text(contents: Contents) -> bytes:
    return json.dumps(contents.record()).encode()


def _named(kind: str, names: Collection[str], verb: str) -> str:
    """Some of the names as text, such as `2 images went: a/1.png, a/2.png`."""
    first = ", ".join(map(printable, sorted(names)[:_NAMED]))
    return f"{len(names):,} {kind}{'s' * (len(names) != 1)} {verb}: {first}{', …' if len(names) > _NAMED else ''}"
