"""A saved model, and the one way to open it: a run directory, a directory that timm saved, or a file of weights.

What a model says of itself (architecture, card, options of its run) is read at once and without torch; its tensors and
masks are read when they are asked for. Nothing in a file is trusted: no code in it ever runs.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sparsekit._types import Tensor, Tensors
from sparsekit.config.options import ArchitectureConfig, DataConfig, ModelConfig
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DATA_ARGS = ("in_chans", "num_classes")
"""Arguments of `timm.create_model` that follow from the data, and are handed over apart from the others."""
KINDS = "a run directory, a directory that timm saved, a safetensors file or a state dict"


@dataclass(frozen=True)
class SavedModel:
    """A saved model; its tensors are read on demand.

    Attributes:
        option: The option that named it, for messages.
        path: As it was given, with `~` expanded.
        file: Where the weights are.
        name: timm's name of the architecture; None where nothing says so.
        kwargs: Arguments of `timm.create_model` that belong to it, but `DATA_ARGS`.
        card: The whole `config.json`; empty without one.
        run: The options of the sparsekit run that made it, as plain data; empty where it is no run.
    """

    option: str
    path: Path
    file: Path
    name: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
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
        import torch

        stored, masks = self._stored_masks, {}
        for name in names:
            nonzero = self.read(name) != 0
            masks[name] = mask = stored.read(name) if stored and name in stored.names() else nonzero
            if mask.dtype is not torch.bool or mask.shape != nonzero.shape or bool((nonzero & ~mask).any()):
                raise UserError(f"{self.option} {self.path}: masks.safetensors does not suit {name}; remove it")
        return masks

    @property
    def num_classes(self) -> int | None:
        """Number of classes, by its config.json."""
        given = self.card.get("model_args", {}).get("num_classes", self.card.get("num_classes"))
        return given if isinstance(given, int) else None

    @property
    def channels(self) -> int | None:
        """Channels of the images that it takes, by its config.json."""
        given = self.card.get("model_args", {}).get("in_chans")
        size = self.card.get("pretrained_cfg", {}).get("input_size")
        given = given if given is not None else size[0] if isinstance(size, list) and size else None
        return given if isinstance(given, int) else None

    @property
    def data_options(self) -> dict[str, Any]:
        """Options of `--data` to test it with: its run's, else the image size of its config.json."""
        if self.run:
            known = {item.name for item in fields(DataConfig)}
            return {key: value for key, value in (self.run.get("data") or {}).items() if key in known}
        size = self.card.get("pretrained_cfg", {}).get("input_size")
        return {"image_size": size[-1]} if isinstance(size, list) and size and isinstance(size[-1], int) else {}

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of its images a channel, by its config.json; None where it names none."""
        said = self.card.get("pretrained_cfg", {})
        if not said.get("mean") or not said.get("std"):
            return None
        mean, std = (tuple(float(value) for value in said[key]) for key in ("mean", "std"))
        return mean[: self.channels], std[: self.channels]

    @cached_property
    def _stored_masks(self) -> SavedModel | None:
        """The file of masks that lies beside the model, if there is one."""
        file = self.path / "masks.safetensors"
        return SavedModel(self.option, file, file) if file.is_file() else None

    @cached_property
    def _reader(self) -> tuple[Sequence[str], Callable[[str], Tensor]]:
        from safetensors import safe_open  # here and below: safetensors imports torch

        from sparsekit.models import sparse_file

        with self._guarded():
            if _looks_like_pickle(self.file):
                tensors = _state_dict(self, self.file)
                return list(tensors), lambda name: tensors[name].detach().to("cpu", copy=True).contiguous()
            with safe_open(str(self.file), framework="pt") as file:
                if sparse_file.is_sparse(file.metadata()):
                    whole = sparse_file.load(self.file)
                    return list(whole), whole.__getitem__
                names = sorted(file.keys())
        return names, self._read_one

    def _read_one(self, name: str) -> Tensor:
        from safetensors import safe_open

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
        from safetensors import SafetensorError

        if isinstance(
            error, (SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
        ):
            reason = first_line(error)
            raise UserError(f"{self.option} {self.file} is damaged, or holds no model: {reason}") from error


def open_saved_model(option: str, path: Path | str) -> SavedModel:
    """What a path holds; its weights are not read yet.

    Args:
        option: The option or argument that gives the path, for messages.
        path: See `KINDS`.

    Raises:
        UserError: there is no saved model.
    """
    path = expanded(str(path))
    if path.is_file():
        return SavedModel(option, path, path)
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
        return SavedModel(option, path, files[0], run=run)
    name, kwargs, card = read_card(option, path, base)
    return SavedModel(option, path, files[0], name, kwargs, card, run)


def read_card(option: str, path: Path, base: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What config.json in `base` says: architecture, arguments but `DATA_ARGS`, and all of it; raises UserError."""
    card = _mapping(option, base / "config.json", json.loads, ValueError)
    name, kwargs = card.get("architecture"), card.get("model_args") or {}
    if (
        not isinstance(name, str)
        or not isinstance(kwargs, dict)
        or not isinstance(card.get("pretrained_cfg", {}), dict)
    ):
        raise UserError(f"{option} {path}: config.json names no timm architecture; give {KINDS}")
    return name, without_sizes(kwargs), card


def architecture(source: SavedModel, given: ArchitectureConfig) -> ModelConfig:
    """Timm's name and arguments of a saved model: `--model` wins over what it says itself.

    Raises:
        UserError: neither says.
    """
    if given.name is not None:
        return ModelConfig(given.name, kwargs=given.kwargs)
    if source.name is None:
        raise UserError(f"{source.path} does not say which architecture it is; give --model.name and --model.kwargs")
    return ModelConfig(source.name, kwargs={**source.kwargs, **given.kwargs})


def sizes(source: SavedModel, config: ModelConfig, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    """Channels and classes of a model: those of the data, else by its arguments, its config.json, or timm's defaults.

    Args:
        source: The saved model.
        config: Its architecture.
        wanted: Channels and classes of the data that it meets; None without data.

    Raises:
        UserError: the data has others than the model.
    """
    import timm

    known = (source.channels, source.num_classes)
    about = timm.get_pretrained_cfg((config.name or "").partition(".")[0], allow_unregistered=True)
    defaults = (3, about.num_classes if about else 1000)
    found: list[int] = []
    for option, default, need, said in zip(DATA_ARGS, defaults, wanted or (None, None), known, strict=True):
        value = config.kwargs.get(option, said)
        if need is not None and value is not None and value != need:
            raise UserError(
                f"{source.path} has {option} {value}, the data {need}; give --data.name and the like as it was made"
            )
        found.append(int(value if value is not None else need if need is not None else default))
    return found[0], found[1]


def without_sizes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model` but those that follow from the data."""
    return {key: value for key, value in kwargs.items() if key not in DATA_ARGS}


def _mapping(option: str, path: Path, parse: Callable[[str], Any], error: type[Exception]) -> dict[str, Any]:
    try:
        found = parse(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, error) as wrong:
        raise UserError(f"{option} {path} cannot be read: {first_line(wrong)}") from wrong
    if not isinstance(found, dict):
        raise UserError(f"{option} {path} holds no options")
    return found


def _looks_like_pickle(file: Path) -> bool:
    """Whether a file is what `torch.save` writes: a zip archive, or a bare pickle before torch 1.6."""
    with file.open("rb") as opened:
        head = opened.read(4)
    return head[:2] == b"PK" or head[:1] == b"\x80"


def _state_dict(source: SavedModel, file: Path) -> Mapping[str, Tensor]:
    """The tensors of a state dict; nothing else is ever unpickled."""
    import torch

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
    import torch

    return isinstance(name, str) and isinstance(value, torch.Tensor)


class Lazy(Mapping[str, Tensor]):
    """A source's tensors as a mapping that reads each when it is asked for."""

    def __init__(self, source: SavedModel) -> None:
        self.source = source

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.source.names():
            raise KeyError(name)
        return self.source.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.names())

    def __len__(self) -> int:
        return len(self.source.names())
