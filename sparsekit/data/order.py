"""Random orders with derived seeds, and stratified splits."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekit.errors import UserError
from sparsekit.seeds import derive


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seeds.derive` of the parts."""
    return torch.Generator().manual_seed(derive(*parts))


def stratified(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffled indices of int64 `labels` [N] such that every prefix is stratified, to about one image per class.

    The order starts with one image of each class.
    """
    shuffle = torch.randperm(len(labels), generator=generator)
    by_class = shuffle[labels[shuffle].argsort(stable=True)]
    ranks = [torch.arange(count) / max(count, 1) for count in labels.bincount().tolist()]
    rank = torch.empty(len(labels))  # relative position of an image within its class, 0 to 1
    rank[by_class] = torch.cat(ranks)
    return shuffle[rank[shuffle].argsort(stable=True)]


def subset(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """Sorted indices of a random, stratified `fraction` of images with at least one of each class.

    Raises:
        UserError: `fraction` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--replicas.values: {fraction} of the training images; give fractions above 0, up to 1")
    count = max(round(fraction * len(labels)), num_classes)
    return stratified(labels, generator(seed, "subset"))[:count].sort().values


def cut(labels: Tensor, num_classes: int, fraction: float, name: str = "held_out") -> tuple[Tensor, Tensor]:
    """Split off a stratified `fraction` of the images, the same in every run.

    Args:
        labels: int64 [N].
        num_classes: Number of classes.
        fraction: Fraction to hold out, 0 to 1.
        name: Names the split, so that different splits are independent.

    Returns:
        Sorted indices of the images to train on, and of those held out.

    Raises:
        UserError: one of the two would lack a class.
    """
    order = stratified(labels, generator(name))
    count = round(fraction * len(labels))
    held_out, train = order[:count].sort().values, order[count:].sort().values
    for part, what, remedy in ((train, "training", "smaller"), (held_out, "held-out", "larger")):
        missing = (torch.bincount(labels[part], minlength=num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(
                f"--data.held_out: {fraction} of {len(labels)} images leaves no {what} image of class "
                f"{missing[0]}; give a {remedy} fraction, or more images"
            )
    return train, held_out
