"""Saved models, by whomever: run directories, timm directories, safetensors files, state dicts; read with suspicion."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.errors import UserError
from sparsekit.files import expanded
from sparsekit.models import sparse_file as sparsefile

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OF_DATA = ("in_chans", "num_classes")
"""Arguments of `timm.create_model` that follow from the data, and are handed over apart from the others."""
KINDS = "a run directory, a directory that timm saved, a safetensors file or a state dict"


@dataclass(frozen=True)
class Source:
    """A saved model; its tensors are read on demand.

    Attributes:
        option: The option that named it, for messages.
        path: As it was given, with `~` expanded.
        file: Where the weights are.
        name: timm's name of the architecture; None where nothing says so.
        kwargs: Arguments of `timm.create_model` that belong to it, but `OF_DATA`.
        config: The whole `config.json`; empty without one.
        run: The options of the sparsekit run that made it, as plain data; empty where it is no run.
    """

    option: str
    path: Path
    file: Path
    name: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def names(self) -> Sequence[str]:
        """Names of its tensors; raises UserError where the file cannot be read."""
        return self._reader[0]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; raises UserError where the file is damaged."""
        with self._guarded():
            return self._reader[1](name)

    def tensors(self) -> Tensors:
        """All of them."""
        return {name: self.read(name) for name in self.names()}

    def masks(self, names: Sequence[str]) -> Tensors:
        """Masks of the named weights: those stored with the model, else False where a weight is 0.

        Raises:
            UserError: a stored mask does not suit its weight.
        """
        stored, masks = self._stored_masks, {}
        for name in names:
            nonzero = self.read(name) != 0
            masks[name] = mask = stored.read(name) if stored and name in stored.names() else nonzero
            if mask.dtype is not torch.bool or mask.shape != nonzero.shape or bool((nonzero & ~mask).any()):
                raise UserError(f"{self.option} {self.path}: masks.safetensors does not suit {name}; remove it")
        return masks

    @property
    def num_classes(self) -> int | None:
        """How many classes the model tells apart, by its config.json."""
        given = self.config.get("model_args", {}).get("num_classes", self.config.get("num_classes"))
        return given if isinstance(given, int) else None

    @property
    def channels(self) -> int | None:
        """Channels of the images that it takes, by its config.json."""
        given = self.config.get("model_args", {}).get("in_chans")
        size = self.config.get("pretrained_cfg", {}).get("input_size")
        given = given if given is not None else size[0] if isinstance(size, list) and size else None
        return given if isinstance(given, int) else None

    @cached_property
    def _stored_masks(self) -> Source | None:
        """The file of masks that lies beside the model, if there is one."""
        file = self.path / "masks.safetensors"
        return Source(self.option, file, file) if file.is_file() else None

    @cached_property
    def _reader(self) -> tuple[Sequence[str], Callable[[str], Tensor]]:
        with self._guarded():
            if _looks_like_pickle(self.file):
                tensors = _state_dict(self, self.file)
                return list(tensors), lambda name: tensors[name].detach().to("cpu", copy=True).contiguous()
            with safe_open(str(self.file), framework="pt") as file:
                if sparsefile.is_sparse(file.metadata()):
                    whole = sparsefile.load(self.file)
                    return list(whole), whole.__getitem__
                names = sorted(file.keys())
        return names, self._read_one

    def _read_one(self, name: str) -> Tensor:
        with safe_open(str(self.file), framework="pt") as file:  # closed again: nothing of it stays in memory
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def _guarded(self) -> _Guard:
        return _Guard(self.option, self.file)


class _Guard:
    """Turns what reading a damaged or missing file raises into one line."""

    def __init__(self, option: str, file: Path) -> None:
        self.option, self.file = option, file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError):
            return
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{self.option} {self.file}: {error.strerror}") from error
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"{self.option} {self.file} is no plain state dict of tensors, and nothing else is unpickled; save "
                "model.state_dict(), or a safetensors file"
            ) from error
        if isinstance(
            error, (SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
        ):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.option} {self.file} is damaged, or holds no model: {reason}") from error


def open_source(option: str, path: Path | str) -> Source:
    """What a path holds; its weights are not read yet.

    Args:
        option: The option or argument that gives the path, for messages.
        path: See `KINDS`.

    Raises:
        UserError: there is no saved model.
    """
    path = expanded(str(path))
    if path.is_file():
        return Source(option, path, path)
    if not path.is_dir():
        raise UserError(f"{option} {path}: nothing is there; give {KINDS}")
    base, run = path, {}
    if (path / "config.yaml").is_file():
        run = _mapping(option, path / "config.yaml", yaml.safe_load, yaml.YAMLError)
        base = path / "model"
        if not (base / "model.safetensors").is_file():
            raise UserError(f"{option} {path}: this run is not finished (no model/model.safetensors); finish it first")
    files = [base / name for name in WEIGHTS if (base / name).is_file()]
    if not files:
        raise UserError(f"{option} {path}: neither {' nor '.join(WEIGHTS)} is there; give {KINDS}")
    if not (base / "config.json").is_file():
        return Source(option, path, files[0], run=run)
    name, kwargs, config = described(option, path, base)
    return Source(option, path, files[0], name, kwargs, config, run)


def described(option: str, path: Path, base: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What config.json in `base` says: architecture, arguments but `OF_DATA`, and all of it; raises UserError."""
    config = _mapping(option, base / "config.json", json.loads, ValueError)
    name, kwargs = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(kwargs, dict):
        raise UserError(f"{option} {path}: config.json names no timm architecture; give {KINDS}")
    return name, without_sizes(kwargs), config


def without_sizes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model` but those that follow from the data."""
    return {key: value for key, value in kwargs.items() if key not in OF_DATA}


def fill(model: nn.Module, source: Source) -> None:
    """Put a saved model's weights into a model of the same architecture.

    Raises:
        UserError: a tensor is missing, too many, of another shape, or not finite.
    """
    wanted = model.state_dict()
    where = f"{source.option} {source.path}"
    for name in wanted:
        if name not in source.names():
            raise UserError(f"{where} lacks {name}; it is another architecture (see --model.name and --model.kwargs)")
    for name in source.names():
        if name not in wanted:
            raise UserError(
                f"{where} has {name}, which the model has not; it is another architecture (see --model.name and "
                "--model.kwargs)"
            )
    for name, tensor in wanted.items():
        found = source.read(name)
        if found.shape != tensor.shape:
            sizes = [shape[1] for shape in (found.shape, tensor.shape) if len(shape) == 4]
            kinds = {1: "grey", 3: "colour"}
            hint = ""
            if len(sizes) == 2 and set(sizes) == set(kinds):
                hint = (
                    f"; {kinds[sizes[0]]} against {kinds[sizes[1]]} images: give a model of this data's, or other data"
                )
            raise UserError(f"{where}: {name} has shape {tuple(found.shape)}, the model's {tuple(tensor.shape)}{hint}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise UserError(f"{where}: {name} is not finite")
        tensor.copy_(found)


def _mapping(option: str, path: Path, parse: Callable[[str], Any], error: type[Exception]) -> dict[str, Any]:
    try:
        found = parse(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, error) as wrong:
        raise UserError(f"{option} {path} cannot be read: {str(wrong).splitlines()[0]}") from wrong
    if not isinstance(found, dict):
        raise UserError(f"{option} {path} holds no options")
    return found


def _looks_like_pickle(file: Path) -> bool:
    """Whether a file is what `torch.save` writes: a zip archive, or a bare pickle before torch 1.6."""
    with file.open("rb") as opened:
        head = opened.read(4)
    return head[:2] == b"PK" or head[:1] == b"\x80"


def _state_dict(source: Source, file: Path) -> Mapping[str, Tensor]:
    """The tensors of a state dict; nothing else is ever unpickled."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files of before torch 1.6 cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(_is_entry(*item) for item in found.items()):
        raise UserError(f"{source.option} {file} is no state dict; save model.state_dict()")
    return found


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


class Lazy(Mapping[str, Tensor]):
    """A source's tensors as a mapping that reads each when it is asked for."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.source.names():
            raise KeyError(name)
        return self.source.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.names())

    def __len__(self) -> int:
        return len(self.source.names())
