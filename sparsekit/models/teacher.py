"""The teacher of `--distill`: a saved model that is shown the batches of another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.config.options import ModelConfig
from sparsekit.data import LoadedData
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import UserError
from sparsekit.models.card import class_order, made_as
from sparsekit.models.create import load_model
from sparsekit.models.fill import fit_names
from sparsekit.models.saved import open_saved_model


class Teacher(nn.Module):
    """A model whose images differ in size and normalisation, or classes in order, from those of the batches it gets.

    Args:
        model: The model.
        own: How its images are made; of the crop nothing holds, as a batch is cropped already.
        batch: How the images of the batches are made.
        order: The model's label of each class of the batches; None if they are the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, own: InputConfig, batch: InputConfig, order: tuple[int, ...] | None) -> None:
        super().__init__()
        self.model, self.order = model, None if order is None else list(order)
        self.size = own.size if own.size != batch.size else None
        self.mode = own.interpolation if own.interpolation == "bicubic" else "bilinear"
        self.same = (own.mean, own.std) == (batch.mean, batch.std)
        mean, std, batch_mean, batch_std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (own.mean, own.std, batch.mean, batch.std)
        )
        self.register_buffer("scale", (batch_std / std).float())
        self.register_buffer("shift", ((batch_mean - mean) / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] in the order of the batches' classes, for images [B, C, H, W] normalised as the batches are."""
        if not self.same:
            images = images * self.scale + self.shift
        if self.size is not None:
            images = F.interpolate(images, self.size, mode=self.mode, align_corners=False, antialias=True)
        logits: Tensor = self.model(images)
        return logits if self.order is None else logits[:, self.order]


def open_teacher(path: str, data: LoadedData) -> tuple[Teacher, list[str]]:
    """Load the teacher given by `--distill`, in evaluation mode and without gradients.

    Args:
        path: A run directory or a directory that timm saved.
        data: The data set whose batches it is shown.

    Returns:
        The teacher, and lines for the user about what it is shown.

    Raises:
        UserError: there is no model, or its channels or classes differ from the data's.
    """
    source = open_saved_model("--distill", path)
    if source.name is None:
        raise UserError(f"--distill {path}: nothing says which architecture it is; give a directory with a config.json")
    for what, has, needed in (
        ("classes", source.num_classes, data.num_classes),
        ("channels", source.channels, data.channels),
    ):
        if has is not None and has != needed:
            raise UserError(
                f"--distill {path}: the teacher has {has} {what}, the data {needed}; give one for this data"
            )
    order, mapped = class_order(source, data.class_names, "the data")
    own, notes = made_as(source, data.inputs)
    model = load_model(source, ModelConfig(source.name, kwargs=source.kwargs), data.num_classes, data.channels)
    if shown := [name for name in data.inputs.differing(own) if name in ("size", "mean", "std")]:
        notes.append(f"--distill {path} is shown the same images with {own.text(shown)}, as its config.json says")
    notes += [*fit_names(source, model).notes, *mapped]
    return Teacher(model, own, data.inputs, order).eval().requires_grad_(False), notes
