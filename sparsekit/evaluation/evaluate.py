"""Evaluate a model on the test split: metrics, corruptions, agreement with a dense model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekit._version import __version__
from sparsekit.api import Task
from sparsekit.config.options import ArchitectureConfig, EvaluateConfig
from sparsekit.data import LoadedData, load
from sparsekit.display.text import score_text
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation.batchnorm import RECALIBRATION_IMAGES, recalibrate_batchnorm
from sparsekit.evaluation.published_corruptions import SEVERITIES, Published
from sparsekit.evaluation.scores import Batches, Measured, measure_model, predict_outputs
from sparsekit.models.card import recommended, seen_by
from sparsekit.models.create import load_model
from sparsekit.models.device import autocast, choose_device, enough_memory, lacks_memory, use_precision
from sparsekit.models.fill import fit_names
from sparsekit.models.saved import SavedModel, architecture, open_saved_model, sizes

if TYPE_CHECKING:
    from sparsekit.evaluation.corruptions import Corruption

Report = Callable[[str], None]


@dataclass(frozen=True)
class Evaluator:
    """A model with its normalisation, autocast context and task."""

    model: nn.Module
    normalise: Callable[[Tensor], Tensor]
    autocast: torch.autocast
    task: Task

    def measure(self, raw: Batches, corruption: Corruption | None = None, predictions: bool = False) -> Measured:
        """Measure on batches before normalisation, after a corruption if given."""
        batches = ((self.normalise(_corrupted(inputs, corruption)), targets) for inputs, targets in raw)
        return measure_model(self.model, batches, self.autocast, self.task, predictions)


@enough_memory("lower --data.batch_size or --data.image_size, or set --precision bf16 or --device cpu")
def evaluate(source: SavedModel, config: EvaluateConfig, report: Report | None = None) -> dict[str, Any]:
    """Evaluate a saved model.

    Args:
        source: The model.
        config: The options of `sparsekit evaluate`.
        report: Called with lines for the user: what is not as one would think, and after each kind of corruption.

    Returns:
        The content of evaluation.json; classes are in the model's order.

    Raises:
        UserError: model and data do not fit, or an option is bad.
    """
    device = choose_device(config.device)
    dtype = use_precision(config.precision, device)
    data = load(config.data, device, config.channels_last, config.task)
    report = report or (lambda line: None)
    evaluator, seen = _evaluator(source, config, data, device, dtype, report)
    option = "corruptions" if config.corruptions else "corruption_files" if config.corruption_files else ""
    if option:
        check_corruptible(f"--{option}", data)
    if option and not seen.inputs.square:
        raise UserError(
            f"--{option}: {source.path} takes images of {seen.inputs.pixels} pixels, and only square ones are "
            "corrupted; leave it out"
        )
    published = None
    if config.corruption_files:
        published = Published.open(config.corruption_files, data.num_classes, seen.class_order)
    dense = None
    if config.dense:
        other, others = _evaluator(open_saved_model("--dense", config.dense), config, data, device, dtype, report)
        dense = other.measure(others.raw_batches("test"), predictions=True).predictions
        if dense is None:
            raise UserError(
                f"--dense: task {type(config.task).__name__} has no predictions that can be equal; leave it out"
            )
        if seen.class_names != others.class_names:
            dense = torch.tensor([seen.class_names.index(name) for name in others.class_names])[dense]
    variants: dict[str, Any] = {}
    if config.batchnorm != "recalibrated":
        variants["saved"] = measure_variant(evaluator, seen, config, dense, published, report)
    if config.batchnorm != "saved":
        images = seen.raw_batches("train", limit=RECALIBRATION_IMAGES)
        clean = ((evaluator.normalise(raw), labels) for raw, labels in images)
        recalibrate_batchnorm(evaluator.model, clean, evaluator.autocast)
        variants["recalibrated"] = measure_variant(evaluator, seen, config, dense, published, report)
    if any(found["test"][config.task.score_name] is None for found in variants.values()):
        why = seen.first_not_finite("test") or "look at what the model gives"
        report(f"test.{config.task.score_name} is not finite: {why}")
    about = header(str(source.path), config.data.name, seen, config.task, config.seed)
    return about | ({"dense": config.dense} if config.dense else {}) | {"variants": variants}


def check_corruptible(option: str, data: LoadedData) -> None:
    """Raise UserError where a data set's inputs are no images that can be corrupted."""
    if data.fixed:
        raise UserError(f"{option}: only images of grey levels are corrupted, not examples of your own; leave it out")


def metrics_json(measured: Measured) -> dict[str, Any]:
    """Measures as evaluation.json holds them; None for values that are not finite."""
    return {
        "test": {key: value if isfinite(value) else None for key, value in measured.numbers.items()},
        **measured.lists,
    }


def measure_variant(
    evaluator: Evaluator,
    data: LoadedData,
    config: EvaluateConfig,
    dense: Tensor | None = None,
    published: Published | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Measure one variant of a model, as saved or recalibrated.

    Args:
        evaluator: The model.
        data: The data set as the model sees it.
        config: The options of `sparsekit evaluate`.
        dense: What the dense model predicts for the test examples.
        published: Published corrupted test sets.
        report: Called with a line of progress after each kind of corruption.

    Returns:
        The entry of `variants` in evaluation.json.
    """
    measured = evaluator.measure(data.raw_batches("test"), predictions=dense is not None)
    found = metrics_json(measured)
    if dense is not None and measured.predictions is not None:
        found["agreement"] = float((measured.predictions == dense).double().mean())
    if config.corruptions:
        from sparsekit.evaluation.corruptions import KINDS, Corruption

        found["corruptions"] = {}
        for kind in KINDS:
            found["corruptions"][kind] = [
                _brief(
                    config.task,
                    evaluator.measure(data.raw_batches("test"), Corruption(kind, severity, config.seed, data.device)),
                )
                for severity in range(1, SEVERITIES + 1)
            ]
            if report:
                name = config.task.score_name
                values = [cell[name] for cell in found["corruptions"][kind]]
                mean = "not finite" if None in values else score_text(name, sum(values) / SEVERITIES)
                report(f"{kind.replace('_', ' ')}: {mean}")
    if published:
        found["corruption_files"] = {
            kind: [
                _brief(
                    config.task,
                    evaluator.measure(
                        published.batches(kind, severity, data.inputs.height_and_width, data.channels, data.device)
                    ),
                )
                for severity in range(1, SEVERITIES + 1)
            ]
            for kind in published.files
        }
    return found


def _brief(task: Task, measured: Measured) -> dict[str, float | None]:
    return {
        key: value if isfinite(value) else None
        for key, value in measured.numbers.items()
        if key in (task.score_name, "loss", "ece")
    }


def _corrupted(images: Tensor, corruption: Corruption | None) -> Tensor:
    return images if corruption is None else corruption(images.float().div_(255.0)).mul_(255.0)


def _evaluator(
    source: SavedModel,
    config: EvaluateConfig,
    data: LoadedData,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
) -> tuple[Evaluator, LoadedData]:
    """A model on the device, and the data set as it sees it."""
    given = config.model if source.name is None else ArchitectureConfig()
    known = architecture(source, given)
    channels, classes = sizes(source, given, (data.channels, data.num_classes))
    seen, notes = seen_by(source, data, config.data)
    for note in filter(None, [*notes, recommended(source)]):
        report(note)
    model = load_model(source, known, classes, channels)
    for note in fit_names(source, model).notes:
        report(note)
    memory = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=memory)
    evaluator = Evaluator(model, seen.normalise, autocast(device, dtype), config.task)
    images, _ = next(iter(seen.raw_batches("test")))
    try:
        predict_outputs(model, seen.normalise(images[:2]), evaluator.autocast)
    except (RuntimeError, ValueError, AssertionError) as error:
        if lacks_memory(error):
            raise
        fix = "set --data.image_size" if source.run.get("data") else "give the --data.name that it was trained on"
        what = f"inputs of shape {tuple(images[:2].shape)} of --data.name {config.data.name}"
        raise UserError(
            f"{source.path}: the model cannot take {what} ({first_line(error).rstrip('.;')}); {fix}"
        ) from error
    return evaluator, seen


def header(model: str, name: str, data: LoadedData, task: Task, seed: int) -> dict[str, Any]:
    """The entries of evaluation.json that describe the evaluation; `name` is the data set's."""
    about = {"name": name, "images": data.test_size, "classes": data.num_classes, "image_size": data.inputs.side}
    names = {"class_names": list(data.class_names)}
    made = {"format": 1, "version": __version__, "model": model, "score": task.score_name}
    return made | {"data": about, **names, "seed": seed}
