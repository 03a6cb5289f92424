"""Checkpoints: files that are there whole or not at all, checksummed, the last two kept. Nothing here is a pickle.

A checkpoint is a manifest, `000012.json`, that names the safetensors files it stands on with their SHA-256. Its first
line is the SHA-256 of the rest. The manifest is written last, so a checkpoint that was cut off does not exist.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparsekit._types import Tensors
from sparsekit.errors import RunError
from sparsekit.files import load_tensors, save_tensors, write_whole

T = TypeVar("T")
KEEP = 2
OTHERS = "rank"
"""What the prefixes of keepers start with that are not the run's own."""
FORMAT = 1


@dataclass(frozen=True)
class StoredFile:
    """A file in the checkpoint folder: its name there, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says which file and why."""


class CheckpointStore:
    """The checkpoint folder of one run, or one writer's part in it.

    Several ranks may write to one folder, each under a prefix of its own: a keeper removes what it wrote itself, and
    nothing that the kept manifest of another names.

    Args:
        folder: Where the checkpoints are.
        prefix: What the names of this keeper's files start with; no digit.

    Attributes:
        number: Number of the newest checkpoint; 0 without one.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        self.number = max((self._number_of(path) for path in self.manifests()), default=0)
        self._written = time.monotonic()
        self._known: dict[str, StoredFile] = {}
        self._once: dict[str, tuple[object, StoredFile]] = {}

    @property
    def age(self) -> float:
        """Seconds since this store last committed a checkpoint, or since it was made."""
        return time.monotonic() - self._written

    # --- writing

    def store(self, stem: str, tensors: Tensors) -> StoredFile:
        """Write tensors to a new file, flushed to the disk."""
        path = self.new(f"{self.number + 1:06}-{stem}")
        save_tensors(path, tensors)
        return self.described(path)

    def new(self, stem: str) -> Path:
        """Where a tensors' file of this keeper goes; what was known of one of that name is not."""
        path = self.folder / f"{self.prefix}{stem}.safetensors"
        self._known.pop(path.name, None)
        return path

    def store_once(self, stem: str, owner: object, tensors: Callable[[], Tensors]) -> StoredFile:
        """Store an object's tensors, or reuse the file where it is the one that was stored last under this stem."""
        if stem not in self._once or self._once[stem][0] is not owner:
            self._once[stem] = (owner, self.store(stem, tensors()))
        return self._once[stem][1]

    def adopt(self, stem: str, owner: object, file: StoredFile) -> None:
        """Take it that a file of the folder is what `store_once` would write."""
        self._once[stem] = (owner, file)

    def described(self, path: Path) -> StoredFile:
        """A file of the folder with its size and checksum, computed once."""
        if path.name not in self._known:
            self._known[path.name] = StoredFile(path.name, path.stat().st_size, _sha256(path))
        return self._known[path.name]

    def commit(self, body: dict[str, Any], files: dict[str, StoredFile]) -> str:
        """Write the manifest, and return its name; from now on this checkpoint is the newest. The last two stay."""
        self.number += 1
        text = json.dumps({"format": FORMAT, **body, "files": {key: asdict(f) for key, f in files.items()}})
        data = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()
        name = f"{self.prefix}{self.number:06}.json"
        write_whole(self.folder / name, data)
        self._written = time.monotonic()
        self._once = {stem: entry for stem, entry in self._once.items() if entry[1] in files.values()}
        self._sweep()
        return name

    def clear(self) -> None:
        """Remove all checkpoints, once the run is done."""
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            path.unlink()

    # --- reading

    def restored(
        self, warn: Callable[[str], None], read: Callable[[dict[str, Any], dict[str, StoredFile]], T]
    ) -> T | None:
        """What `read` makes of the newest good checkpoint, or None where none was ever finished.

        A damaged one, or one that `read` finds Damaged, is named through `warn` and passed over.

        Raises:
            RunError: there are checkpoints, and all are damaged.
        """
        manifests = sorted(self.manifests(), reverse=True)
        for path in manifests:
            try:
                return read(*self.open(path))
            except Damaged as damage:
                warn(f"checkpoint {path.name} is damaged: {damage}")
        if manifests:
            raise RunError(
                f"all checkpoints in {self.folder} are damaged; nothing was changed; start anew with another --out"
            )
        return None

    def load(self, file: StoredFile) -> Tensors:
        """A checked file's tensors, on the CPU."""
        return load_tensors(self.path(file))

    def path(self, file: StoredFile) -> Path:
        """Where a file lies."""
        return self.folder / file.name

    def open(self, path: Path) -> tuple[dict[str, Any], dict[str, StoredFile]]:
        """One checkpoint by its manifest, checked; raises Damaged."""
        try:
            head, _, text = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from error
        if hashlib.sha256(text).hexdigest().encode() != head:
            raise Damaged("its checksum is wrong")
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise Damaged(f"it has format {body['format']!r}, this version reads {FORMAT}")
            files = {key: StoredFile(**entry) for key, entry in body["files"].items()}
            for file in files.values():
                self._verify(file)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise Damaged(f"it is no manifest ({type(error).__name__}: {error})") from error
        return body, files

    def _verify(self, file: StoredFile) -> None:
        if Path(file.name).name != file.name:
            raise Damaged(f"{file.name!r} is no name of a file beside it")
        path = self.path(file)
        if not path.is_file():
            raise Damaged(f"{file.name} is missing")
        if path.stat().st_size != file.size or _sha256(path) != file.sha256:
            raise Damaged(f"the checksum of {file.name} is wrong")
        self._known[file.name] = file

    def manifests(self) -> list[Path]:
        """This keeper's manifests, in no order."""
        return [path for path in self.folder.glob("*.json") if self._number_of(path)]

    def _number_of(self, path: Path) -> int:
        """Number of a manifest of this keeper's; 0 for other files."""
        number = path.stem.removeprefix(self.prefix)
        return int(number) if path.stem.startswith(self.prefix) and number.isdigit() else 0

    def _sweep(self) -> None:
        """Remove old manifests of this keeper, and those of its files that no kept manifest of any keeper names.

        Hidden files stay until the run is done: safetensors writes under a hidden name first, another rank maybe now.
        """
        old = sorted(self.manifests(), reverse=True)[KEEP:]
        kept = {path.name for path in self.folder.glob("*.json") if path not in old}
        for path in [self.folder / name for name in kept]:
            try:
                kept |= {entry["name"] for entry in json.loads(path.read_bytes().partition(b"\n")[2])["files"].values()}
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
                continue
        for path in self.folder.glob(f"{self.prefix}*"):
            if path.name not in kept and (self.prefix or not path.name.startswith((OTHERS, "."))):
                path.unlink()
                self._known.pop(path.name, None)


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
