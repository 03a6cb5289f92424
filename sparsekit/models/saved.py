"""Open a saved model: a run directory, a directory that timm saved, or a file of weights.

The model's description (architecture, config.json, options of its run) is read at once and without torch, its tensors
and masks on demand. Files are not trusted: no code in them ever runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sparsekit._types import Tensor, Tensors
from sparsekit.config.options import ArchitectureConfig, ModelConfig
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded
from sparsekit.plugins.objects import is_object

if TYPE_CHECKING:
    from sparsekit.models.state_dict import StateDict

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DATA_ARGS = ("in_chans", "num_classes")
"""Arguments of `timm.create_model` that follow from the data, and are passed separately from the others."""
KINDS = "a run directory, a directory that timm saved, a safetensors file or a state dict"


@dataclass(frozen=True)
class SavedModel:
    """A saved model; its tensors are read on demand.

    Attributes:
        option: The option that gave the path, for messages.
        path: The path, with `~` expanded.
        file: The file of weights.
        name: timm's name of the architecture; None if unknown.
        kwargs: The architecture's arguments of `timm.create_model`, without `DATA_ARGS`.
        card: The content of config.json; empty without one.
        run: The options of the sparsekit run that trained it, as plain data; of a soup those that merge.json holds, its
            data set and task; empty for other models.
        given: Its tensors; None reads the file.
        rows: For tensors whose rows are read in another order than they are stored, that order.
    """

    option: str
    path: Path
    file: Path
    name: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    given: StateDict | None = None
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The option and the path, for messages."""
        return f"{self.option} {self.path}"

    def names(self) -> Sequence[str]:
        """Names of its tensors; raises UserError if the file cannot be read, or holds no plain weights."""
        return list(self.content.readers)

    def read(self, name: str) -> Tensor:
        """Read one tensor to the CPU; raises UserError if the file is damaged."""
        with self._guarded():
            tensor = self.content.readers[name]()
        return tensor[list(self.rows[name])] if name in self.rows else tensor

    def tensors(self) -> Tensors:
        """Read all tensors to the CPU; raises UserError if the file is damaged."""
        return {name: self.read(name) for name in self.names()}

    def masks(self, names: Sequence[str]) -> Tensors:
        """Bool masks of the named weights, True keeps: those stored with the model, else False where a weight is 0.

        A layer that holds only zeros has no mask unless one is stored: it may be one that starts at zero, such as a new
        head, and is still to be trained.

        Raises:
            UserError: a stored mask does not suit its weight.
        """
        import torch

        stored, masks = self._stored_masks, {}
        for name in names:
            nonzero = self.read(name) != 0
            inferred = nonzero if bool(nonzero.any()) else torch.ones_like(nonzero)
            masks[name] = mask = stored.read(name) if stored and name in stored.names() else inferred
            if mask.dtype is not torch.bool or mask.shape != nonzero.shape or bool((nonzero & ~mask).any()):
                raise UserError(f"{self.option} {self.path}: masks.safetensors does not suit {name}; remove it")
        return masks

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The part of config.json that describes images and classes; older timm wrote all in one."""
        found: dict[str, Any] = self.card.get("pretrained_cfg", self.card)
        return found

    def named(self, key: str) -> Any:
        """A value that config.json has at its top, or else beside the description of the images; None without one."""
        found = self.card.get(key)
        return self.pretrained_cfg.get(key) if found is None else found

    @property
    def num_classes(self) -> int | None:
        """Number of classes, from config.json; None if it names none."""
        given = (self.card.get("model_args") or {}).get("num_classes", self.named("num_classes"))
        return given if isinstance(given, int) else None

    @property
    def channels(self) -> int | None:
        """Number of image channels, from config.json; None if it names none."""
        given = (self.card.get("model_args") or {}).get("in_chans")
        size = self.pretrained_cfg.get("input_size")
        given = given if given is not None else size[0] if isinstance(size, list) and size else None
        return given if isinstance(given, int) else None

    @property
    def data_options(self) -> dict[str, Any]:
        """Options of `--data` of its run, without those that its config.json answers; empty for other models."""
        answered = ("image_size", "kwargs") if self.card else ()
        return {key: value for key, value in (self.run.get("data") or {}).items() if key not in answered}

    @property
    def is_run(self) -> bool:
        """Whether it is the finished model of a run directory."""
        return (self.path / "config.yaml").is_file()

    @property
    def imports(self) -> list[str]:
        """The modules of `--import` of its run; empty for other models."""
        return list(self.run.get("imports") or [])

    @property
    def task_options(self) -> dict[str, Any]:
        """Name and options of its run's task; empty for other models, and for runs older than tasks."""
        return dict(self.run.get("task") or {})

    @cached_property
    def _stored_masks(self) -> SavedModel | None:
        """The masks in the model's directory, else those that stood beside weights in its file, if there are any."""
        from sparsekit.models.state_dict import StateDict  # not at the top of the file, as it imports torch

        file = self.path / "masks.safetensors"
        if file.is_file():
            return SavedModel(self.option, file, file, rows=self.rows)
        masks = self.content.masks
        return SavedModel(self.option, self.path, self.file, given=StateDict(masks), rows=self.rows) if masks else None

    @cached_property
    def content(self) -> StateDict:
        """Its plain tensors; raises UserError if the file cannot be read, or holds no plain weights."""
        from sparsekit.models.state_dict import open_state_dict  # not at the top of the file, as it imports torch

        if self.given is not None:
            return self.given
        with self._guarded():
            return open_state_dict(self.file, f"{self.option} {self.file}")

    @property
    def notes(self) -> list[str]:
        """Lines for the user about what was chosen in its file."""
        return [f"{self.path}: {note}" for note in self.content.notes]

    def fitted(self, expected: Collection[str]) -> SavedModel:
        """The same model with its tensors under the names that a model expects, as `StateDict.fitted` finds them."""
        one = is_object(self.name)  # sparsekit wrote it, with the names of a module of the user's own
        return replace(self, given=self.content.fitted(expected, self.where, one))

    def _guarded(self) -> _Guard:
        return _Guard(self.option, self.file)


class _Guard:
    """Turns errors from reading a damaged or missing file into a UserError of one line."""

    def __init__(self, option: str, file: Path) -> None:
        self.option, self.file = option, file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError):
            return
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{self.option} {self.file}: {error.strerror}") from error
        from safetensors import SafetensorError

        if isinstance(
            error, (SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
        ):
            reason = first_line(error)
            raise UserError(f"{self.option} {self.file} is damaged, or holds no model: {reason}") from error


def open_saved_model(option: str, path: Path | str) -> SavedModel:
    """Open a saved model, without reading its weights yet.

    Args:
        option: The option or argument that gives the path, for messages.
        path: A run directory, a directory that timm saved, a safetensors file or a state dict.

    Raises:
        UserError: there is no saved model at the path.
    """
    path = expanded(str(path))
    if path.is_file():
        from sparsekit.models.sparse_file import config_of  # not at the top of the file, as it imports torch

        card = config_of(path)
        return SavedModel(option, path, path, *(_described(option, path, card) if card else ()))
    if not path.is_dir():
        raise UserError(f"{option} {path}: nothing is there; give {KINDS}")
    base, run = path, {}
    if (path / "config.yaml").is_file():
        run = _mapping(option, path / "config.yaml", yaml.safe_load, yaml.YAMLError)
        base = path / "model"
        if not (base / "model.safetensors").is_file():
            raise UserError(f"{option} {path}: this run is not finished (no model/model.safetensors); finish it first")
    elif (path / "merge.json").is_file():
        recorded = _mapping(option, path / "merge.json", json.loads, ValueError).get("run")
        run = recorded if isinstance(recorded, dict) else {}  # soups of earlier versions hold none
    files = [base / name for name in WEIGHTS if (base / name).is_file()]
    if not files:
        raise UserError(f"{option} {path}: neither {' nor '.join(WEIGHTS)} is there; give {KINDS}")
    if not (base / "config.json").is_file():
        return SavedModel(option, path, files[0], run=run)
    name, kwargs, card = read_card(option, path, base)
    return SavedModel(option, path, files[0], name, kwargs, card, run)


def run_options(sources: Sequence[SavedModel]) -> dict[str, Any]:
    """Data and task of the first sparsekit run among saved models, by dotted names, and the modules that all import."""
    found: dict[str, Any] = {}
    if source := next((source for source in sources if source.run), None):
        found |= {f"data.{name}": value for name, value in source.data_options.items() if value is not None}
        found |= {"task" if name == "name" else f"task.{name}": value for name, value in source.task_options.items()}
    modules = dict.fromkeys(module for source in sources for module in source.imports)
    return found | ({"imports": list(modules)} if modules else {})


def read_card(option: str, path: Path, base: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read config.json in `base`.

    Returns:
        timm's name of the architecture, its arguments without `DATA_ARGS`, and the whole content.

    Raises:
        UserError: the file cannot be read or names no architecture.
    """
    return _described(option, path, _mapping(option, base / "config.json", json.loads, ValueError))


def _described(option: str, path: Path, card: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    name, kwargs = card.get("architecture"), card.get("model_args") or {}
    if (
        not isinstance(name, str)
        or not isinstance(kwargs, dict)
        or not isinstance(card.get("pretrained_cfg", {}), dict)
    ):
        raise UserError(f"{option} {path}: config.json names no timm architecture; give {KINDS}")
    # not among timm's arguments, so that timm refuses the weights instead of guessing
    slim = {"slim": card["slim"]} if isinstance(card.get("slim"), dict) else {}
    return name, without_sizes({**kwargs, **slim}), card


def architecture(source: SavedModel, given: ArchitectureConfig) -> ModelConfig:
    """The timm name and arguments of a saved model, without `DATA_ARGS`; `--model` overrides the model's own.

    Raises:
        UserError: neither the model nor `--model` names the architecture.
    """
    if given.name is not None:
        return ModelConfig(given.name, kwargs=without_sizes(given.kwargs))
    if source.name is None:
        raise UserError(f"{source.path} does not say which architecture it is; give --model.name and --model.kwargs")
    return ModelConfig(source.name, kwargs=without_sizes({**source.kwargs, **given.kwargs}))


def sizes(source: SavedModel, given: ArchitectureConfig, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    """Number of image channels and of classes of a model.

    They come from the data, else from the model's arguments, its config.json, or timm's defaults.

    Args:
        source: The saved model.
        given: The options of `--model`.
        wanted: Channels and classes of the data; None without data.

    Raises:
        UserError: the data and the model differ.
    """
    import timm

    from sparsekit.models.registered import is_registered

    known = (source.channels, source.num_classes)
    name = given.name or source.name or ""
    is_registered(name)
    registered = timm.get_pretrained_cfg(name.partition(".")[0], allow_unregistered=True)
    defaults = (3, registered.num_classes if registered else 1000)
    found: list[int] = []
    for option, default, need, own in zip(DATA_ARGS, defaults, wanted or (None, None), known, strict=True):
        value = given.kwargs.get(option, own)
        if need is not None and value is not None and value != need:
            raise UserError(
                f"{source.path} has {option} {value}, the data {need}; give --data.name and the like as it was made"
            )
        found.append(int(value if value is not None else need if need is not None else default))
    return found[0], found[1]


def without_sizes(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model` without those that follow from the data."""
    return {key: value for key, value in kwargs.items() if key not in DATA_ARGS}


def _mapping(option: str, path: Path, parse: Callable[[str], Any], error: type[Exception]) -> dict[str, Any]:
    try:
        found = parse(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, error) as wrong:
        raise UserError(f"{option} {path} cannot be read: {first_line(wrong)}") from wrong
    if not isinstance(found, dict):
        raise UserError(f"{option} {path} holds no options")
    return found


class Lazy(Mapping[str, Tensor]):
    """A saved model's tensors as a mapping that reads each tensor on access."""

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
