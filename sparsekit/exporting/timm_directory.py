"""A directory that `timm.create_model("local-dir:…", pretrained=True)` loads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import timm

from sparsekit import models, states
from sparsekit.exporting.formats import Format, Loaded, of_module
from sparsekit.exporting.subject import Subject


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
