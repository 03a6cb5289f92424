"""Checkpoints: files that are there whole or not at all, checksummed, the last two kept. Nothing here is a pickle.

A checkpoint is a manifest, `000012.json`, that names the safetensors files it stands on with their SHA-256. Its first
line is the SHA-256 of the rest. The manifest is written last, so a checkpoint that was cut off does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsekit import states
from sparsekit._types import Tensors
from sparsekit.atomic import write_whole
from sparsekit.errors import RunError

KEEP = 2
FORMAT = 1


@dataclass(frozen=True)
class StoredFile:
    """A file in the checkpoint folder: its name there, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says which file and why."""


class Keeper:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = max((int(path.stem) for path in self._manifests()), default=0)
        self._known: dict[str, StoredFile] = {}
        self._once: tuple[object, StoredFile] | None = None

    # --- writing

    def store(self, stem: str, tensors: Tensors) -> StoredFile:
        """Write tensors to a new file, flushed to the disk."""
        path = self.folder / f"{self._number + 1:06}-{stem}.safetensors"
        states.save(path, tensors)
        return self.described(path)

    def store_once(self, owner: object, tensors: Callable[[], Tensors]) -> StoredFile:
        """Store an object's tensors, or reuse the file where it is the object that was stored last."""
        if self._once is None or self._once[0] is not owner:
            self._once = (owner, self.store("parent", tensors()))
        return self._once[1]

    def described(self, path: Path) -> StoredFile:
        """A file of the folder with its size and checksum, computed once."""
        if path.name not in self._known:
            self._known[path.name] = StoredFile(path.name, path.stat().st_size, _sha256(path))
        return self._known[path.name]

    def commit(self, body: dict[str, Any], files: dict[str, StoredFile]) -> None:
        """Write the manifest; from now on this checkpoint is the newest. Older ones than the last two go."""
        self._number += 1
        text = json.dumps({"format": FORMAT, **body, "files": {key: asdict(f) for key, f in files.items()}})
        data = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()
        write_whole(self.folder / f"{self._number:06}.json", data)
        self._sweep()

    def clear(self) -> None:
        """Remove all checkpoints, once the run is done."""
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            path.unlink()

    # --- reading

    def newest(self, warn: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, StoredFile]] | None:
        """The newest good checkpoint, or None where none was ever finished; a damaged one is named through `warn`.

        Raises:
            RunError: there are checkpoints, and all are damaged.
        """
        manifests = sorted(self._manifests(), reverse=True)
        for path in manifests:
            try:
                return self._open(path)
            except Damaged as damage:
                warn(f"checkpoint {path.name} is damaged: {damage}")
        if manifests:
            raise RunError(
                f"all checkpoints in {self.folder} are damaged; nothing was changed; start anew with another --out"
            )
        return None

    def load(self, file: StoredFile) -> Tensors:
        """A checked file's tensors, on the CPU."""
        return states.load(self.path(file))

    def path(self, file: StoredFile) -> Path:
        """Where a file lies."""
        return self.folder / file.name

    def _open(self, path: Path) -> tuple[dict[str, Any], dict[str, StoredFile]]:
        try:
            head, _, text = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from error
        if hashlib.sha256(text).hexdigest().encode() != head:
            raise Damaged("its checksum is wrong")
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise Damaged(f"it has format {body['format']}, this version reads {FORMAT}")
        files = {key: StoredFile(**entry) for key, entry in body["files"].items()}
        for file in files.values():
            self._verify(file)
        return body, files

    def _verify(self, file: StoredFile) -> None:
        path = self.path(file)
        if not path.is_file():
            raise Damaged(f"{file.name} is missing")
        if path.stat().st_size != file.size or _sha256(path) != file.sha256:
            raise Damaged(f"the checksum of {file.name} is wrong")
        self._known[file.name] = file

    def _manifests(self) -> list[Path]:
        return [path for path in self.folder.glob("*.json") if path.stem.isdigit()]

    def _sweep(self) -> None:
        """Remove old manifests and the files that none of the kept ones names."""
        manifests = sorted(self._manifests(), reverse=True)
        kept = {path.name for path in manifests[:KEEP]}
        for path in manifests[:KEEP]:
            try:
                kept |= {file.name for file in self._open_names(path)}
            except (Damaged, ValueError, KeyError):
                continue
        for path in self.folder.glob("*"):
            if path.name not in kept:
                path.unlink()
                self._known.pop(path.name, None)

    def _open_names(self, path: Path) -> list[StoredFile]:
        body = json.loads(path.read_bytes().partition(b"\n")[2])
        return [StoredFile(**entry) for entry in body["files"].values()]


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
