"""The rules for an export format, tried on a tiny model that is half zeros."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekit.config.options import ModelConfig
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import RunError, UserError
from sparsekit.exporting.export import compare, same_tensors
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.models.create import build_model
from sparsekit.models.saved import SavedModel
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of

_SIZE = 8
_CLASSES = 3


@dataclass(frozen=True)
class FormatCase:
    """An export format."""

    format: Any

    @cached_property
    def model(self) -> ExportModel:
        """A model to export, with random images."""
        return export_model(0)

    @contextmanager
    def exported(self, given: ExportModel | None = None) -> Iterator[tuple[Path, ExportModel]]:
        """The path of an export, and the model that was written.

        Raises:
            Skipped: it is no format, or refuses the model.
            Broken: it cannot write.
        """
        model = given or self.model
        if not isinstance(self.format, Format):
            raise Skipped("it is no Format, see is_a_format")
        try:
            self.format.check(model)
        except UserError as error:
            raise Skipped(f"it refuses the kit's model: {error}") from error
        with tempfile.TemporaryDirectory(prefix="sparsekit-check-") as folder:
            path = Path(folder) / "model.out"
            self.called("write", self.format.write, model, path)
            yield path, model

    def called(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a part of the format returns; raises Broken where it raises."""
        try:
            return function(*arguments)
        except Exception as error:
            raise Broken(f"{name}() raised {describe(error)}") from error

    def loaded(self, path: Path, model: ExportModel) -> Loaded:
        """The export, read back."""
        found = self.called("load", self.format.load, path, model)
        need(isinstance(found, Loaded), f"load() returned {type(found).__name__}; give a sparsekit.Loaded")
        return found  # type: ignore[no-any-return]

    def is_same(self, loaded: Loaded, model: ExportModel) -> None:
        """Raise Broken unless an export has the tensors and the logits of a model."""
        reference = self.called("reference", self.format.reference, model)
        try:
            same_tensors(reference.tensors, loaded.tensors)
            found = self.called("logits", compare, reference, loaded, model)
        except RunError as error:
            raise Broken(str(error)) from error
        limit = self.format.tolerance * max(found.largest, 1.0)
        need(found.difference <= limit, f"logits differ by {found.difference:.3g}, which is more than {limit:.3g}")


def is_a_format(case: FormatCase) -> None:
    """It is a `sparsekit.Format`; its tolerance is a fraction from 0 to below 1."""
    need(isinstance(case.format, Format), f"it is {type(case.format).__name__}")
    need(0.0 <= case.format.tolerance < 1.0, f"tolerance is {case.format.tolerance!r}")


def writes_where_it_is_told(case: FormatCase) -> None:
    """`write` makes the path that it gets, and whatever else it needs lies beside it under longer names."""
    with case.exported() as (path, _):
        need(path.exists(), "write() left nothing at its path")
        others = [file.name for file in path.parent.iterdir() if not file.name.startswith(path.name)]
        need(not others, f"write() left {', '.join(others)} beside {path.name}")


def comes_back_as_it_was(case: FormatCase) -> None:
    """What `load` reads has every tensor bit for bit, zeros among them, and the same logits within the tolerance."""
    with case.exported() as (path, model):
        case.is_same(case.loaded(path, model), model)


@after("comes_back_as_it_was")
def reads_what_was_written(case: FormatCase) -> None:
    """`load` takes weights and buffers, as BatchNorm's statistics, from its path: of the model that it gets it may use
    the class alone.
    """
    with case.exported() as (path, model):
        loaded = case.loaded(path, export_model(1))
        try:
            case.is_same(loaded, model)
        except Broken as error:
            raise Broken(f"given another model, load() returned some of its values: {error}; read them all") from error


@after("comes_back_as_it_was", "reads_what_was_written")
def two_exports_differ(case: FormatCase) -> None:
    """Two models give two exports, each as its own model is: nothing is kept from one call to the next."""
    with case.exported() as (first, model), case.exported(export_model(1)) as (second, other):
        case.is_same(case.loaded(second, other), other)
        case.is_same(case.loaded(first, model), model)


def leaves_the_model_alone(case: FormatCase) -> None:
    """The model and its images are the same after `check`, `write`, `load` and `reference`, and in evaluation mode."""
    before = {name: tensor.clone() for name, tensor in case.model.model.state_dict().items()}
    images = case.model.images.clone()
    with case.exported() as (path, model):
        case.loaded(path, model)
        case.format.reference(model)
        now = model.model.state_dict()
        changed = [name for name in before if not torch.equal(before[name], now[name])]
        need(before.keys() == now.keys() and not changed, f"{', '.join(changed) or 'its tensors'} changed")
        need(torch.equal(images, model.images), "the images changed")
        need(not any(module.training for module in model.model.modules()), "the model is in training mode")


def export_model(seed: int) -> ExportModel:
    """A tiny ResNet with half of its weights 0, and eight images; with another seed every tensor is another."""
    kwargs = {"layers": [1, 1, 0, 0], "channels": [4, 8, 8, 8]}
    config = ModelConfig("resnet18", kwargs=kwargs)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, _CLASSES, 1, seed).eval()
        images = torch.randn(8, 1, _SIZE, _SIZE)
        for tensor in model.state_dict().values():  # of a new model BatchNorm's are 0 and 1, whatever the seed
            if tensor.dim() == 1:
                tensor.add_(torch.rand(len(tensor)) - 0.5)
            elif not tensor.dim():
                tensor.fill_(10 + seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.masked_fill_(module.weight.abs() < module.weight.abs().median(), 0.0)
    source = SavedModel("--model.name", Path(), Path(), config.name, dict(kwargs))
    inputs = InputConfig(1, (_SIZE, _SIZE), (0.0,), (1.0,))
    return ExportModel(source, config, model, inputs, [f"class {i}" for i in range(_CLASSES)], images, real=False)


FORMAT_RULES = rules_of({name: value for name, value in globals().items() if name != "export_model"})
