"""What `evaluate` is pointed at: a run directory, or a model directory that timm or sparsekit saved. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sparsekit.config.options import DataConfig
from sparsekit.errors import UserError
from sparsekit.files import expanded


@dataclass(frozen=True)
class Subject:
    """A saved model.

    Attributes:
        folder: What was given.
        model: The folder of config.json and model.safetensors.
        config: A run's options as config.yaml holds them; empty for a model directory.
        card: What config.json says.
    """

    folder: Path
    model: Path
    config: dict[str, Any]
    card: dict[str, Any]

    @property
    def is_run(self) -> bool:
        """Whether a run directory was given."""
        return self.model != self.folder

    @property
    def classes(self) -> int:
        """Classes that the model tells apart."""
        return int(self.card["num_classes"])

    @property
    def inputs(self) -> dict[str, Any]:
        """What timm says of the images: `input_size`, `mean` and `std`."""
        found: dict[str, Any] = self.card["pretrained_cfg"]
        return found

    def data(self) -> dict[str, Any]:
        """The data options that the run was made with; for a model alone, its image size."""
        known = {item.name for item in fields(DataConfig)}
        if self.is_run:
            return {key: value for key, value in self.config.get("data", {}).items() if key in known}
        return {"image_size": int(self.inputs["input_size"][-1])}


def find(path: str, option: str = "") -> Subject:
    """Look at a directory; raises UserError that says what is missing in it."""
    folder = expanded(path)
    said = f"{option} {path}".strip()
    if not folder.is_dir():
        raise UserError(f"{said}: no such directory; give a run, or a model that sparsekit or timm saved")
    is_run = (folder / "config.yaml").is_file()
    model = folder / "model" if is_run else folder
    if not (model / "config.json").is_file() or not (model / "model.safetensors").is_file():
        if is_run:
            raise UserError(f"{said}: this run has no finished model; go on with it by `sparsekit fit --resume`")
        raise UserError(f"{said}: no config.yaml of a run there, and no config.json and model.safetensors of a model")
    file = model / "config.json"
    try:
        card = json.loads(file.read_text("utf-8"))
        size, classes = card["pretrained_cfg"]["input_size"], int(card["num_classes"])
        if len(size) != 3 or classes < 2 or not {"mean", "std"} <= set(card["pretrained_cfg"]):
            raise ValueError("no image classifier")
        file = folder / "config.yaml"
        config = yaml.safe_load(file.read_text("utf-8")) if is_run else {}
        if not isinstance(config, dict):
            raise ValueError("it holds no options")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"{said}: {file.name} cannot be read ({why}); give another, or mend the file") from error
    return Subject(folder, model, config, card)
