"""Evaluate a model on the test split: metrics, corruptions, agreement with a dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekit._version import __version__
from sparsekit.config.options import ArchitectureConfig, EvaluateConfig
from sparsekit.data import Data, load
from sparsekit.data.images import Normaliser
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation.batchnorm import RECALIBRATION_IMAGES, recalibrate_batchnorm
from sparsekit.evaluation.metrics import Metrics
from sparsekit.evaluation.published_corruptions import SEVERITIES, Published
from sparsekit.evaluation.scores import measure_model, predict_logits
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
    """A model with its normalisation, autocast context and number of classes."""

    model: nn.Module
    normalise: Normaliser
    autocast: torch.autocast
    classes: int

    def measure(self, raw: Iterator[tuple[Tensor, Tensor]], corruption: Corruption | None = None) -> Metrics:
        """Metrics on images uint8 [B, C, S, S] with labels [B], after a corruption if given."""
        return self.predictions(raw, corruption)[0]

    def predictions(
        self, raw: Iterator[tuple[Tensor, Tensor]], corruption: Corruption | None = None
    ) -> tuple[Metrics, Tensor]:
        """Metrics as `measure` returns them, and the predicted class of each image, int64 [N]."""
        batches = ((self.normalise(_corrupted(images, corruption)), labels) for images, labels in raw)
        return measure_model(self.model, batches, self.classes, self.autocast)


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
    data = load(config.data, device, config.channels_last)
    report = report or (lambda line: None)
    evaluator, seen = _evaluator(source, config, data, device, dtype, report)
    if (config.corruptions or config.corruption_files) and not seen.inputs.square:
        option = "corruptions" if config.corruptions else "corruption_files"
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
        dense = other.predictions(others.raw_batches("test"))[1]
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
    about = header(str(source.path), config.data.name, seen, config.seed)
    return about | ({"dense": config.dense} if config.dense else {}) | {"variants": variants}


def metrics_json(metrics: Metrics) -> dict[str, Any]:
    """Metrics as evaluation.json holds them; None for values that are not finite."""
    return {
        "test": {key: value if isfinite(value) else None for key, value in metrics.flat().items()},
        "class_accuracy": list(metrics.class_accuracy),
        "bins": [asdict(bar) for bar in metrics.bins],
    }


def measure_variant(
    evaluator: Evaluator,
    data: Data,
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
        dense: The classes that the dense model predicts for the test images, int64 [N].
        published: Published corrupted test sets.
        report: Called with a line of progress after each kind of corruption.

    Returns:
        The entry of `variants` in evaluation.json.
    """
    metrics, predicted = evaluator.predictions(data.raw_batches("test"))
    found = metrics_json(metrics)
    if dense is not None:
        found["agreement"] = float((predicted == dense).double().mean())
    if config.corruptions:
        from sparsekit.evaluation.corruptions import KINDS, Corruption

        found["corruptions"] = {}
        for kind in KINDS:
            found["corruptions"][kind] = [
                _brief(
                    evaluator.measure(data.raw_batches("test"), Corruption(kind, severity, config.seed, data.device))
                )
                for severity in range(1, SEVERITIES + 1)
            ]
            if report:
                report(f"{kind.replace('_', ' ')}: {_mean(found['corruptions'][kind]):.1%}")
    if published:
        found["corruption_files"] = {
            kind: [
                _brief(
                    evaluator.measure(published.batches(kind, severity, data.inputs.size, data.channels, data.device))
                )
                for severity in range(1, SEVERITIES + 1)
            ]
            for kind in published.files
        }
    return found


def _brief(metrics: Metrics) -> dict[str, float | None]:
    loss = metrics.loss if isfinite(metrics.loss) else None
    return {"accuracy": metrics.accuracy, "loss": loss, "ece": metrics.ece if isfinite(metrics.ece) else None}


def _mean(rows: list[dict[str, float | None]]) -> float:
    return sum(row["accuracy"] or 0.0 for row in rows) / len(rows)


def _corrupted(images: Tensor, corruption: Corruption | None) -> Tensor:
    return images if corruption is None else corruption(images.float().div_(255.0)).mul_(255.0)


def _evaluator(
    source: SavedModel, config: EvaluateConfig, data: Data, device: torch.device, dtype: torch.dtype, report: Report
) -> tuple[Evaluator, Data]:
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
    evaluator = Evaluator(model, seen.normalise, autocast(device, dtype), classes)
    images, _ = next(iter(seen.raw_batches("test")))
    try:
        predict_logits(model, seen.normalise(images[:2]), evaluator.autocast)
    except (RuntimeError, ValueError, AssertionError) as error:
        if lacks_memory(error):
            raise
        raise UserError(
            f"{source.path}: the model cannot take images of {seen.inputs.pixels} pixels "
            f"({first_line(error).rstrip('.;')}); set --data.image_size"
        ) from error
    return evaluator, seen


def header(model: str, name: str, data: Data, seed: int) -> dict[str, Any]:
    """The entries of evaluation.json that describe the evaluation; `name` is the data set's."""
    about = {"name": name, "images": data.test_size, "classes": data.num_classes, "image_size": data.inputs.side}
    names = {"class_names": list(data.class_names)}
    return {"format": 1, "version": __version__, "model": model, "data": about, **names, "seed": seed}
