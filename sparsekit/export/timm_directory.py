"""A directory that `timm.create_model("local-dir:…", pretrained=True)` loads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import timm

from sparsekit.export.formats import Format, Loaded, of_module
from sparsekit.export.model import Subject
from sparsekit.models import create as models
from sparsekit.models import state as states


def write(subject: Subject, out: Path) -> None:
    """Copy what the source says of itself, or describe it anew."""
    if subject.described:
        out.mkdir()
        shutil.copyfile(subject.described, out / "config.json")
        states.save(out / "model.safetensors", states.capture(subject.model))
    else:
        models.save(copy.deepcopy(subject.model), subject.config, subject.inputs, out)
        states.make_readable(out / "model.safetensors")


def load(out: Path, subject: Subject) -> Loaded:
    """As anyone would."""
    return of_module(timm.create_model(f"local-dir:{out.absolute()}", pretrained=True).eval())


FORMAT = Format(write, load)
