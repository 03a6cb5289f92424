"""Everything that `evaluate` measures, and what of it `fit` measures at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from sparsekit._version import __version__
from sparsekit.config.options import EvaluateConfig
from sparsekit.data import Data, load
from sparsekit.data.images import Normaliser
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation import scores as evaluation
from sparsekit.evaluation.metrics import Metrics
from sparsekit.evaluation.published_corruptions import SEVERITIES, Published
from sparsekit.models.subjects import Subject, find
from sparsekit.training import setup

if TYPE_CHECKING:
    from sparsekit.evaluation.corruptions import Corruption

Report = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """A model with what it takes to test it."""

    model: nn.Module
    normalise: Normaliser
    autocast: torch.autocast
    classes: int

    def measure(self, raw: Iterator[tuple[Tensor, Tensor]], corruption: Corruption | None = None) -> Metrics:
        """Metrics on images uint8 [B, C, S, S], corrupted first."""
        return self.answers(raw, corruption)[0]

    def answers(
        self, raw: Iterator[tuple[Tensor, Tensor]], corruption: Corruption | None = None
    ) -> tuple[Metrics, Tensor]:
        """The same, and each predicted class."""
        changed = ((self.normalise(_changed(images, corruption)), labels) for images, labels in raw)
        return evaluation.measure(self.model, changed, self.classes, self.autocast)


def evaluate(subject: Subject, config: EvaluateConfig, report: Report | None = None) -> dict[str, Any]:
    """Measure a saved model; the result is what evaluation.json holds.

    Raises:
        UserError: model and data do not belong together, or an option is bad.
    """
    device = setup.choose_device(config.device)
    dtype = setup.choose_dtype(config.precision, device)
    data = load(config.data, device, config.channels_last)
    bench = _bench(subject, config, data, device, dtype)
    published = Published.open(config.corruption_files, subject.classes) if config.corruption_files else None
    dense = None
    if config.dense:
        other = _bench(find(config.dense, "--dense"), config, data, device, dtype)
        dense = other.answers(data.raw_batches("test"))[1]
    variants: dict[str, Any] = {}
    if config.batchnorm != "recalibrated":
        variants["saved"] = measured(bench, data, config, dense, published, report)
    if config.batchnorm != "saved":
        images = data.raw_batches("train", limit=setup.RECALIBRATION_IMAGES)
        clean = ((bench.normalise(raw), labels) for raw, labels in images)
        evaluation.recalibrate(bench.model, clean, bench.autocast)
        variants["recalibrated"] = measured(bench, data, config, dense, published, report)
    about = header(str(subject.folder), config.data.name, data, config.seed)
    return about | ({"dense": config.dense} if config.dense else {}) | {"variants": variants}


def described(metrics: Metrics) -> dict[str, Any]:
    """Metrics as evaluation.json holds them; null for a loss that is not finite."""
    return {
        "test": {key: value if isfinite(value) else None for key, value in metrics.flat().items()},
        "class_accuracy": list(metrics.class_accuracy),
        "bins": [asdict(bar) for bar in metrics.bins],
    }


def measured(
    bench: Bench,
    data: Data,
    config: EvaluateConfig,
    dense: Tensor | None = None,
    published: Published | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """One variant of an evaluation; `dense` is what the dense model predicts for each test image."""
    metrics, predicted = bench.answers(data.raw_batches("test"))
    found = described(metrics)
    if dense is not None:
        found["agreement"] = float((predicted == dense).double().mean())
    if config.corruptions:
        from sparsekit.evaluation.corruptions import KINDS, Corruption

        found["corruptions"] = {}
        for kind in KINDS:
            found["corruptions"][kind] = [
                _brief(bench.measure(data.raw_batches("test"), Corruption(kind, severity, config.seed, data.device)))
                for severity in range(1, SEVERITIES + 1)
            ]
            if report:
                report(f"{kind.replace('_', ' ')}: {_mean(found['corruptions'][kind]):.1%}")
    if published:
        found["corruption_files"] = {
            kind: [
                _brief(bench.measure(published.batches(kind, severity, data.image_size, data.channels, data.device)))
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


def _changed(images: Tensor, corruption: Corruption | None) -> Tensor:
    return images if corruption is None else corruption(images.float().div_(255.0)).mul_(255.0)


def _bench(subject: Subject, config: EvaluateConfig, data: Data, device: torch.device, dtype: torch.dtype) -> Bench:
    inputs = subject.inputs
    channels = int(inputs["input_size"][0])
    if (subject.classes, channels) != (data.num_classes, data.channels):
        raise UserError(
            f"{subject.folder}: the model has {subject.classes} classes and {channels} input channels, "
            f"{config.data.name} has {data.num_classes} and {data.channels}; give the data set that it was made for as "
            "--data.name"
        )
    try:
        model = timm.create_model(f"local-dir:{subject.model}", pretrained=True).to(device)
    except Exception as error:  # timm passes on whatever the model's constructor or the weights raise
        raise UserError(f"{subject.model}: timm cannot load it: {first_line(error)}; train or save it again") from error
    memory = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(memory_format=memory)
    normalise = Normaliser(tuple(inputs["mean"]), tuple(inputs["std"]), device, memory)
    bench = Bench(model, normalise, setup.autocast(device, dtype), subject.classes)
    images, _ = next(iter(data.raw_batches("test")))
    try:
        evaluation.logits(model, normalise(images[:2]), bench.autocast)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{subject.folder}: the model cannot take images of {data.image_size}×{data.image_size} pixels "
            f"({first_line(error).rstrip('.;')}); set --data.image_size"
        ) from error
    return bench


def header(model: str, name: str, data: Data, seed: int) -> dict[str, Any]:
    """What an evaluation says of itself; `name` is the data set's."""
    about = {"name": name, "images": data.test_size, "classes": data.num_classes, "image_size": data.image_size}
    return {"format": 1, "version": __version__, "model": model, "data": about, "seed": seed}
