"""Checkpoints: written atomically, checksummed, without pickle; the last two are kept (`CheckpointStore.commit`).

A checkpoint is a manifest, `000012.json`, that names its safetensors files with their XXH128, which finds damage and
takes a thirtieth of SHA-256's time. The manifest's first line is the SHA-256 of the rest. It is written last, so an
interrupted checkpoint does not exist.
"""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from torch import Tensor

from sparsekit.errors import RunError
from sparsekit.files import sync, write_whole
from sparsekit.models import stored
from sparsekit.models.stored import StoredTensors

T = TypeVar("T")
KEEP = 2
OTHERS = "rank"
"""Start of the file prefixes of ranks other than the leader."""
FORMAT = 3
READS = (1, 2, 3)
"""Format 1 names files with their SHA-256. In format 2, too, a parent's file has the optimizer's state."""


@dataclass(frozen=True)
class StoredFile:
    """A file in the checkpoint folder: its name there, its size in bytes and its checksum, of one kind or the other."""

    name: str
    size: int
    xxh128: str = ""
    sha256: str = ""


class Damaged(Exception):
    """A checkpoint cannot be used; the message names the file and the reason."""


class CheckpointStore:
    """The checkpoints of one writer in a run's checkpoint folder.

    Several ranks may write to one folder, each with its own prefix. A store removes only files that it wrote itself
    and that no other store's kept manifest names.

    Args:
        folder: The checkpoint folder.
        prefix: Prefix of the names of this store's files; must not start with a digit.

    Attributes:
        number: Number of the newest checkpoint; 0 without one.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        self.number = max((self._number_of(path) for path in self.manifests()), default=0)
        self._written = time.monotonic()
        self._known: dict[str, StoredFile] = {}
        self._once: dict[str, tuple[Callable[[], object], StoredFile]] = {}
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._unfinished: deque[Future[object]] = deque()
        self._new = set[str]()

    @property
    def age(self) -> float:
        """Seconds since this store last committed a checkpoint, or since it was made."""
        return time.monotonic() - self._written

    # --- writing

    def beside(self, work: Callable[[], object]) -> None:
        """Do some writing beside the training, after what was given before; nothing else may be written until `wait`.

        The tensors that are written must not change meanwhile.
        """
        self._unfinished.append(self._writer.submit(work))

    def wait(self) -> None:
        """Wait until everything that was given to `beside` is written; raises the first error of it."""
        while self._unfinished:
            self._unfinished[0].exception()  # if a signal ends this wait, the next one waits on
            self._unfinished.popleft().result()

    def store(self, stem: str, tensors: Mapping[str, Tensor]) -> StoredFile:
        """Write tensors to a new file, flushed to the disk."""
        return self.described(self.put(stem, tensors).path)

    def put(self, stem: str, tensors: Mapping[str, Tensor]) -> StoredTensors:
        """Write tensors to a new file, which is there to be read; it is flushed when a checkpoint names it."""
        path = self.new(f"{self.number + 1:06}-{stem}")
        stored.save(path, tensors)
        return StoredTensors(path)

    def new(self, stem: str) -> Path:
        """The path for a new tensor file of this store, which stays until a checkpoint has named it.

        A cached checksum of an older file of that name is dropped.
        """
        path = self.folder / f"{self.prefix}{stem}.safetensors"
        self._known.pop(path.name, None)
        self._new.add(path.name)
        return path

    def store_once(self, stem: str, owner: object, tensors: Callable[[], Mapping[str, Tensor]]) -> StoredFile:
        """Store an object's tensors, or reuse its file if the same object was stored last under this stem."""
        if stem not in self._once or self._once[stem][0]() is not owner:
            self._once[stem] = (_held(owner), self.store(stem, tensors()))
        return self._once[stem][1]

    def adopt(self, stem: str, owner: object, file: StoredFile) -> None:
        """Register an existing file as the one that `store_once` would write for this object."""
        self._once[stem] = (_held(owner), file)

    def described(self, path: Path) -> StoredFile:
        """The size and checksum of a file in the folder, once it is on the disk; the checksum is cached."""
        if path.name not in self._known:
            sync(path)
            self._known[path.name] = StoredFile(path.name, path.stat().st_size, _checksum(path, xxhash.xxh128()))
        return self._known[path.name]

    def commit(self, body: dict[str, Any], files: dict[str, StoredFile], alone: bool = False) -> str:
        """Write the manifest, which makes this the newest checkpoint; remove older ones; return its name.

        What stays is the newest and one more: the last before it that has no replica in the middle of its training.

        Args:
            body: Entries of the manifest.
            files: The files that it names.
            alone: Write the manifest twice, so that no older checkpoint stays, nor the files that only those need.
        """
        text = json.dumps({"format": FORMAT, **body, "files": {key: asdict(f) for key, f in files.items()}})
        data = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()
        for _ in range(KEEP if alone else 1):
            self.number += 1
            name = f"{self.prefix}{self.number:06}.json"
            write_whole(self.folder / name, data)
        self._new.difference_update(file.name for file in files.values())
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
        """Return `read(manifest, files)` of the newest undamaged checkpoint; None without any checkpoint.

        Damaged checkpoints, including those for which `read` raises `Damaged`, are skipped with a warning.

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
                f"all checkpoints in {self.folder} are damaged; nothing was changed; start again with another --out"
            )
        return None

    def load(self, file: StoredFile) -> StoredTensors:
        """A file's tensors, to be read one at a time."""
        return StoredTensors(self.path(file))

    def path(self, file: StoredFile) -> Path:
        """The path of a file."""
        return self.folder / file.name

    def open(self, path: Path) -> tuple[dict[str, Any], dict[str, StoredFile]]:
        """Read a manifest and verify its files.

        Returns:
            The manifest, and its files by what they hold.

        Raises:
            Damaged: the manifest or one of its files is damaged.
        """
        try:
            head, _, text = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from error
        if hashlib.sha256(text).hexdigest().encode() != head:
            raise Damaged("its checksum is wrong")
        try:
            body = json.loads(text)
            if body["format"] not in READS:
                raise Damaged(f"it has format {body['format']!r}, this version reads {READS[0]} to {READS[-1]}")
            files = {key: StoredFile(**entry) for key, entry in body["files"].items()}
            for file in files.values():
                self._verify(file)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise Damaged(f"it is not a manifest ({type(error).__name__}: {error})") from error
        return body, files

    def _verify(self, file: StoredFile) -> None:
        if Path(file.name).name != file.name:
            raise Damaged(f"{file.name!r} is not the name of a file in the same folder")
        path = self.path(file)
        if not path.is_file():
            raise Damaged(f"{file.name} is missing")
        expected = file.xxh128 or file.sha256
        found = _checksum(path, xxhash.xxh128() if file.xxh128 else hashlib.sha256())
        if path.stat().st_size != file.size or found != expected:
            raise Damaged(f"the checksum of {file.name} is wrong")
        self._known[file.name] = file

    def manifests(self) -> list[Path]:
        """This store's manifests, in no particular order."""
        return [path for path in self.folder.glob("*.json") if self._number_of(path)]

    def _number_of(self, path: Path) -> int:
        """Number of a manifest of this store; 0 for other files."""
        number = path.stem.removeprefix(self.prefix)
        return int(number) if path.stem.startswith(self.prefix) and number.isdigit() else 0

    def _sweep(self) -> None:
        """Remove this store's old manifests, and those of its files that no kept manifest of any store names.

        Files that no manifest has named yet stay, and so do hidden ones, until the run is done.
        """
        others = sorted(self.manifests(), reverse=True)[1:]
        between = [path for path in others if not _underway(path)] or others
        old = {*others} - {*between[: KEEP - 1]}
        kept = {path.name for path in self.folder.glob("*.json") if path not in old}
        for path in [self.folder / name for name in kept]:
            try:
                kept |= {entry["name"] for entry in json.loads(path.read_bytes().partition(b"\n")[2])["files"].values()}
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
                continue
        found = list(self.folder.glob(f"{self.prefix}*"))
        new = self._new.copy()  # only now: another thread may just have begun to write one
        kept |= new | {name + ".part" for name in new}
        for path in found:
            if path.name not in kept and (self.prefix or not path.name.startswith((OTHERS, "."))):
                path.unlink()
                self._known.pop(path.name, None)


def _held(owner: object) -> Callable[[], object]:
    """A function that returns an object, which does not keep it alive where that can be."""
    try:
        return weakref.ref(owner)
    except TypeError:  # a dict
        return lambda: owner


def _underway(path: Path) -> bool:
    """Whether a manifest has a replica in the middle of its training."""
    try:
        return bool(json.loads(path.read_bytes().partition(b"\n")[2]).get("underway"))
    except (ValueError, AttributeError, RecursionError, OSError):
        return False


def _checksum(path: Path, state: Any) -> str:
    """The hexadecimal checksum of a file, by an object as hashlib makes them."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            state.update(memoryview(block)[:size])
    return str(state.hexdigest())
