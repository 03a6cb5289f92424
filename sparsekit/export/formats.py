"""What a format is, and a loaded export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.export.model import ExportModel


@dataclass(frozen=True)
class Loaded:
    """An export that was read back.

    Attributes:
        predict: Logits of images that were placed.
        tensors: The weights in it, by the model's names; those that the format needs.
        note: What else is to be said of it.
        place: Moves normalised images, float32 [N, C, S, S] on the CPU, to where `predict` takes them.
    """

    predict: Callable[[Tensor], Tensor]
    tensors: Tensors
    note: str = ""
    place: Callable[[Tensor], Tensor] = lambda images: images

    def logits(self, images: Tensor) -> Tensor:
        """Of normalised images; both float32 and on the CPU."""
        return self.predict(self.place(images)).float().cpu()


@dataclass(frozen=True)
class Format:
    """One way to save a model.

    Attributes:
        write: Writes a subject to a new path.
        load: Reads it back, given the path and the subject it was made of.
        reference: The model to compare with, where it is not the subject's own.
        tolerance: Largest difference of logits that is rounding, as a fraction of the largest logit.
        check: Raises UserError where this machine, or the model, cannot have this format.
    """

    write: Callable[[ExportModel, Path], None]
    load: Callable[[Path, ExportModel], Loaded]
    reference: Callable[[ExportModel], Loaded] = lambda subject: of_module(subject.model)
    tolerance: float = 1e-4
    check: Callable[[ExportModel], None] = lambda subject: None


def of_module(model: nn.Module) -> Loaded:
    """A PyTorch model in evaluation mode."""

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)  # type: ignore[no-any-return]

    return Loaded(predict, dict(model.state_dict()))
