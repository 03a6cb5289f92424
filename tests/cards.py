"""Model directories as other people save them: weights of a run, and a config.json that says something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsekit.files import load_tensors, save_tensors

CLASSES = [str(label) for label in range(10)]


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return card


def copied(
    model: Path,
    out: Path,
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    names: Any = None,
    **pretrained_cfg: Any,
) -> Path:
    """A copy of a model directory with other weights, `label_names` (False for none) and `pretrained_cfg`."""
    out.mkdir(parents=True)
    card = card_of(model)
    card["pretrained_cfg"] |= pretrained_cfg
    card["pretrained_cfg"] = {key: value for key, value in card["pretrained_cfg"].items() if value is not None}
    if names is not None:
        card.pop("label_names", None)
    (out / "config.json").write_text(json.dumps(card | ({"label_names": names} if names else {})))
    save_tensors(out / "model.safetensors", weights(load_tensors(model / "model.safetensors")), {"format": "pt"})
    return out


def quartered(model: Path, out: Path, **changes: Any) -> Path:
    """The same function of an image, normalised by a quarter of the std: the first layer takes it back, bit by bit."""

    def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"conv1.weight": tensors["conv1.weight"] / 4}

    return copied(model, out, weights, std=[value / 4 for value in card_of(model)["pretrained_cfg"]["std"]], **changes)


def reordered(model: Path, out: Path, order: Sequence[int], names: Sequence[str] = CLASSES, **changes: Any) -> Path:
    """The same model with its classes in another order: class k is what class `order[k]` was."""

    def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[list(order)].contiguous() if n.startswith("fc.") else t for n, t in tensors.items()}

    return copied(model, out, weights, names=[names[label] for label in order], **changes)
