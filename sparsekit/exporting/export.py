"""`sparsekit export`: write a finished model in another format, read it back, and compare."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from sparsekit._types import Tensors
from sparsekit.config.options import DataConfig, ExportConfig
from sparsekit.display.text import percent
from sparsekit.errors import RunError, UserError
from sparsekit.exporting import onnx_file, semi_structured, slim, sparse, speed, timm_directory, torch_program
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel, load_export_model
from sparsekit.files import expanded
from sparsekit.models.device import enough_memory
from sparsekit.models.saved import SavedModel
from sparsekit.plugins.choices import described, find_choice, known_names

FORMATS: Mapping[str, Format] = {
    "timm": timm_directory.FORMAT,
    "onnx": onnx_file.FORMAT,
    "torch": torch_program.FORMAT,
    "sparse": sparse.FORMAT,
    "2:4": semi_structured.FORMAT,
    "slim": slim.FORMAT,
}
_BATCH = 250


@dataclass(frozen=True)
class Comparison:
    """How the logits of an export differ from those of the original model.

    Attributes:
        images: Number of images.
        difference: Largest absolute difference of two logits.
        largest: Largest absolute logit of the original model.
        disagree: Number of images for which the predicted classes differ.
    """

    images: int
    difference: float
    largest: float
    disagree: int


@enough_memory("end other programs that use the device, or lower --data.image_size")
def export(source: SavedModel, config: ExportConfig, data: DataConfig | None) -> list[tuple[str, str]]:
    """Export a model to `--out`, read it back, and compare it with the original.

    Args:
        source: The model.
        config: The options of `sparsekit export`.
        data: The data set whose test images are compared; None compares on random images.

    Returns:
        A table for the user, as pairs of a name and a text.

    Raises:
        UserError: the options, the model or the machine do not allow the export; nothing was written.
        RunError: the export differs from the original, and was removed; or a file could not be written.
    """
    if config.format is None:
        raise UserError(f"--format must be given; choose from {', '.join(known_names('format'))}")
    if not config.out:
        raise UserError("-o must be given: the file or directory to write")
    exporter, out = find_format(config.format), expanded(config.out)
    if out.exists():
        raise UserError(f"-o {out} exists already; give a new path")
    export_model = load_export_model(source, config.model, data, config.task)
    exporter.check(export_model)
    hidden = out.with_name(f".{out.name}.part")
    try:
        _remove(hidden)  # left over if an export was killed
        hidden.mkdir(parents=True)
        exporter.write(export_model, hidden / out.name)
        loaded = exporter.load(hidden / out.name, export_model)
        reference = exporter.reference(export_model)
        same_tensors(reference.tensors, loaded.tensors)
        found = compare(reference, loaded, export_model)
        if not found.difference <= exporter.tolerance * max(found.largest, 1.0):
            raise RunError(f"logits differ by {found.difference:.3g}, the largest being {found.largest:.3g}")
        for file in sorted(hidden.iterdir(), key=lambda file: file.name == out.name):
            os.replace(file, out.with_name(file.name))  # OUT itself last, so that it is complete once it exists
    except OSError as error:
        in_export = error.filename is None or hidden.name in Path(str(error.filename)).parts
        raise RunError(f"{out if in_export else error.filename}: {error.strerror or error}") from error
    except RunError as error:
        raise RunError(f"-o {out}: {error}; it was removed") from error
    finally:
        _remove(hidden)
    table = _table(export_model, config.format, out, found, loaded)
    if config.measure and exporter.measure is not None:
        table += exporter.measure(export_model, out)
    elif config.measure:
        dense, plain = speed.measure(export_model, exporter, loaded, export_model.images)
        table.append(("speed", f"{dense} as the same export of a model without zeros"))
        table.append(("", speed.verdict(dense, config.format)))
        table.append(("", f"{plain} as this model in plain PyTorch on this machine's CPU"))
    return table


def find_format(name: str) -> Format:
    """The format of a name; raises UserError where that is none, or is no Format."""
    found = find_choice("format", name) or FORMATS[name]
    if not isinstance(found, Format):
        raise UserError(f"{described('format', name)}: it is {type(found).__name__}, not a sparsekit.Format")
    return found


def compare(reference: Loaded, loaded: Loaded, export_model: ExportModel) -> Comparison:
    """Compare logits on the export model's images, in batches of 1 and of up to 250 images."""
    difference = largest = 0.0
    disagree = 0
    task = export_model.task
    batches = torch.split(export_model.images[1:], _BATCH)
    for images in [export_model.images[:1], *batches]:
        expected, logits = reference.logits(images), loaded.logits(images)
        if logits.shape != expected.shape:  # another shape might be compared all the same
            raise RunError(f"logits have the shape {tuple(logits.shape)}, not {tuple(expected.shape)}")
        difference = _larger(difference, float((expected - logits).abs().max()))
        largest = _larger(largest, float(expected.abs().max()))
        same, other = (task.predict(each) for each in (expected, logits))
        if same is not None and other is not None:
            disagree += int((same != other).sum())
    return Comparison(len(export_model.images), difference, largest, disagree)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _larger(found: float, value: float) -> float:
    """The maximum of two numbers, NaN if one is NaN, which `max` may ignore."""
    return math.nan if math.isnan(found) or math.isnan(value) else max(found, value)


def same_tensors(expected: Tensors, found: Tensors) -> None:
    """Raise RunError unless every tensor was read back with the same bits; integer tensors may be missing."""
    for name, tensor in expected.items():
        if name not in found:
            if tensor.is_floating_point():
                raise RunError(f"{name} is not in the file")
        elif not torch.equal(tensor, found[name].to(tensor.device)) or tensor.dtype != found[name].dtype:
            raise RunError(f"{name} differs from the original when read back")


def _table(export_model: ExportModel, name: str, out: Path, found: Comparison, loaded: Loaded) -> list[tuple[str, str]]:
    """An export's result for the user, as pairs of a name and a text."""
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file())
    parameters = [p for _, p in export_model.model.named_parameters()]
    total, nonzero = sum(p.numel() for p in parameters), sum(int((p != 0).sum()) for p in parameters)
    dense = sum(t.numel() * t.element_size() for t in export_model.model.state_dict().values())
    kind = "test images" if export_model.real else "random images (no --data.name was given)"
    same = "no prediction differs" if not found.disagree else f"{found.disagree:,} predictions differ"
    lines = [
        ("format", f"{name}{f', {loaded.note}' if loaded.note else ''}"),
        ("size", f"{decimal(size)}, {percent(size / dense, 1)} of its dense tensors' {decimal(dense)}"),
        ("nonzero", f"{nonzero:,} of {total:,} parameters"),
        ("difference", f"{found.difference:.3g} at most, in logits up to {found.largest:.3g}; {same}"),
        ("compared", f"read back, on {found.images:,} {kind}"),
    ]
    return [*lines, *(("images", note) for note in export_model.notes), ("written", str(out))]
