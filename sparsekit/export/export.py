"""`sparsekit export`: a finished model in another format, read back and compared before the command ends."""

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
from sparsekit.errors import RunError, UserError
from sparsekit.export import onnx_file, semi_structured, sparse, speed, timm_directory, torch_program
from sparsekit.export.formats import Format, Loaded
from sparsekit.export.model import ExportModel, subject_of
from sparsekit.files import expanded
from sparsekit.models.saved import SavedModel

FORMATS: Mapping[str, Format] = {
    "timm": timm_directory.FORMAT,
    "onnx": onnx_file.FORMAT,
    "torch": torch_program.FORMAT,
    "sparse": sparse.FORMAT,
    "2:4": semi_structured.FORMAT,
}
_BATCH = 250


@dataclass(frozen=True)
class Comparison:
    """An export against the model that it was made of.

    Attributes:
        images: How many it was compared on.
        difference: Largest difference of two logits.
        largest: Largest logit.
        disagree: Images for which the two name different classes.
    """

    images: int
    difference: float
    largest: float
    disagree: int


def export(source: SavedModel, config: ExportConfig, data: DataConfig | None) -> list[tuple[str, str]]:
    """Write, read back and compare; what is to be told, as names and lines.

    Raises:
        UserError: the options, the model or the machine do not allow it; nothing was written.
        RunError: what was read back is not what was written; it is removed.
    """
    if config.format is None:
        raise UserError(f"--format must be given; choose from {', '.join(FORMATS)}")
    if not config.out:
        raise UserError("-o must be given: the file or directory to write")
    form, out = FORMATS[config.format], expanded(config.out)
    if out.exists():
        raise UserError(f"-o {out} exists already; give a new path")
    subject = subject_of(source, config.model, data)
    form.check(subject)
    hidden = out.with_name(f".{out.name}.part")
    try:
        _remove(hidden)  # of an export that was killed
        hidden.mkdir(parents=True)
        form.write(subject, hidden / out.name)
        loaded = form.load(hidden / out.name, subject)
        reference = form.reference(subject)
        same_tensors(reference.tensors, loaded.tensors)
        found = compare(reference, loaded, subject)
        if not found.difference <= form.tolerance * max(found.largest, 1.0):
            raise RunError(f"logits differ by {found.difference:.3g}, the largest being {found.largest:.3g}")
        for file in sorted(hidden.iterdir(), key=lambda file: file.name == out.name):
            os.replace(file, out.with_name(file.name))  # OUT itself last: what lies there is whole, and was checked
    except OSError as error:
        ours = error.filename is None or hidden.name in Path(str(error.filename)).parts
        raise RunError(f"{out if ours else error.filename}: {error.strerror or error}") from error
    except RunError as error:
        raise RunError(f"-o {out}: {error}; it was removed") from error
    finally:
        _remove(hidden)
    told = _told(subject, config.format, out, found, loaded)
    if config.measure:
        dense, plain = speed.measure(subject, form, loaded, subject.images)
        told.append(("speed", f"{dense} as the same export of a model without zeros"))
        told.append(("", speed.verdict(dense, config.format)))
        told.append(("", f"{plain} as this model in plain PyTorch on this machine's CPU"))
    return told


def compare(reference: Loaded, loaded: Loaded, subject: ExportModel) -> Comparison:
    """Both on the subject's images, in batches of different sizes."""
    difference = largest = 0.0
    disagree = 0
    batches = torch.split(subject.images[1:], _BATCH)
    for images in [subject.images[:1], *batches]:
        ours, theirs = reference.logits(images), loaded.logits(images)
        difference = _larger(difference, float((ours - theirs).abs().max()))
        largest = _larger(largest, float(ours.abs().max()))
        disagree += int((ours.argmax(1) != theirs.argmax(1)).sum())
    return Comparison(len(subject.images), difference, largest, disagree)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _larger(found: float, value: float) -> float:
    """The maximum, NaN once there was one: `max` leaves NaN out."""
    return math.nan if math.isnan(found) or math.isnan(value) else max(found, value)


def same_tensors(ours: Tensors, theirs: Tensors) -> None:
    """Raise RunError unless every weight came back with the same bits; counters of batches may be missing."""
    for name, tensor in ours.items():
        if name not in theirs:
            if tensor.is_floating_point():
                raise RunError(f"{name} is not in the file")
        elif not torch.equal(tensor, theirs[name].to(tensor.device)) or tensor.dtype != theirs[name].dtype:
            raise RunError(f"{name} did not come back as it was")


def _told(subject: ExportModel, name: str, out: Path, found: Comparison, loaded: Loaded) -> list[tuple[str, str]]:
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file())
    parameters = [p for _, p in subject.model.named_parameters()]
    total, nonzero = sum(p.numel() for p in parameters), sum(int((p != 0).sum()) for p in parameters)
    dense = sum(t.numel() * t.element_size() for t in subject.model.state_dict().values())
    kind = "test images" if subject.real else "random images (no --data.name was given)"
    same = "no prediction differs" if not found.disagree else f"{found.disagree:,} predictions differ"
    lines = [
        ("format", f"{name}{f', {loaded.note}' if loaded.note else ''}"),
        ("size", f"{decimal(size)}, {size / dense:.1%} of its dense tensors' {decimal(dense)}"),
        ("nonzero", f"{nonzero:,} of {total:,} parameters"),
        ("difference", f"{found.difference:.3g} at most, in logits up to {found.largest:.3g}; {same}"),
        ("compared", f"read back, on {found.images:,} {kind}"),
    ]
    return [*lines, ("written", str(out))]
