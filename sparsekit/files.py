"""Atomic file writes (bytes, JSON, YAML, safetensors), and paths as users write them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from sparsekit._types import Tensors
from sparsekit.errors import RunError


def expanded(path: str) -> Path:
    """Replace a leading `~` or `~user` by that home directory; an unknown user's stays, where `Path` would raise."""
    return Path(os.path.expanduser(path))


def local_directory(model: str | None) -> Path | None:
    """The directory DIR of a model name `local-dir:DIR`; None for any other name."""
    kind, _, folder = (model or "").partition(":")
    return expanded(folder) if kind == "local-dir" else None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or a power cut it holds all of `data`, or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)  # the new name lasts only with its folder


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_yaml(path: Path, value: object) -> None:
    """Write a value as YAML, atomically."""
    import yaml  # only now: most commands write none

    write_whole(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, atomically."""
    from safetensors.torch import save_file  # only now: it imports torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
    make_readable(part)
    sync(part)
    os.replace(part, path)


def digest(tensors: Tensors) -> str:
    """The SHA-256 of tensors' names, types, shapes and values."""
    import torch  # not at the top of the file, as it takes time

    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def make_readable(path: Path) -> None:
    """Give a file the permissions that new files have here; safetensors lets its owner alone read it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def load_tensors(path: Path) -> Tensors:
    """Read a safetensors file to the CPU; raises RunError where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise RunError(f"{path} is no safetensors file: {error}") from error
