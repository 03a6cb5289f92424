"""The interface of an export format, and an export that was read back. Formats are plugins, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.exporting.model import ExportModel


@dataclass(frozen=True)
class Loaded:
    """An export that was read back.

    Attributes:
        predict: Maps images that `place` returned to logits [N, K].
        tensors: The weights that the file stores, by the model's names.
        note: A further note for the user; may be empty.
        place: Moves normalised images, float32 [N, C, S, S] on the CPU, to the device and type that `predict` needs.
    """

    predict: Callable[[Tensor], Tensor]
    tensors: Tensors
    note: str = ""
    place: Callable[[Tensor], Tensor] = lambda images: images

    @classmethod
    def from_module(cls, model: nn.Module) -> Loaded:
        """A PyTorch model in evaluation mode, with its own tensors."""

        def predict(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(images)  # type: ignore[no-any-return]

        return cls(predict, dict(model.state_dict()))

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, K] of normalised images [N, C, S, S]; both float32 and on the CPU."""
        return self.predict(self.place(images)).float().cpu()


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        write: Writes a model to a new path, a file or a directory; further files go beside it, under longer names.
        load: Reads an export back, given its path and the model that was written, whose class it may use.
        reference: Returns the model to compare the export with; by default the one that was written.
        tolerance: Largest difference of logits that counts as rounding, as a fraction of the largest logit.
        check: Raises UserError if the model cannot be exported to this format, or not on this machine.
        measure: Measures an export, given the model and its path, for `--measure`: lines of a table, as pairs of a name
            and a text. By default its speed is compared with the same export of a model without zeros.
    """

    write: Callable[[ExportModel, Path], None]
    load: Callable[[Path, ExportModel], Loaded]
    reference: Callable[[ExportModel], Loaded] = lambda export_model: Loaded.from_module(export_model.model)
    tolerance: float = 1e-4
    check: Callable[[ExportModel], None] = lambda export_model: None
    measure: Callable[[ExportModel, Path], list[tuple[str, str]]] | None = None
