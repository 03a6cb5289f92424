"""Random orders with derived seeds, and stratified splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


def batches(
    chosen: Tensor,
    size: int,
    seed: int,
    steps: int,
    start: int = 0,
    place: Callable[[Tensor], Tensor] = torch.Tensor.cpu,
) -> Iterator[tuple[int, Tensor]]:
    """The batches numbered `start` to `steps` - 1 of a stream that depends on `seed` alone.

    An epoch's order depends on (seed, epoch). An epoch's last, incomplete batch is dropped.

    Args:
        chosen: int64 indices. If they are fewer than `size`, every batch holds them all.
        size: Indices a batch.
        seed: Seed of the order.
        steps: Number of batches in the stream.
        start: Number of the first batch to return.
        place: Puts the order of an epoch where it is used.

    Yields:
        The epoch, and the batch's indices, int64.
    """
    size = min(size, len(chosen))
    shuffled, shuffled_epoch = chosen, -1
    for step in range(start, steps):
        epoch, position = divmod(step, len(chosen) // size)
        if epoch != shuffled_epoch:
            shuffled = place(chosen[torch.randperm(len(chosen), generator=generator(seed, "order", epoch))])
            shuffled_epoch = epoch
        yield epoch, shuffled[position * size : (position + 1) * size]


def checked(fraction: float) -> float:
    """A fraction of the training examples; raises UserError unless it is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise UserError(f"--replicas.values: {fraction} of the training images; give fractions above 0, up to 1")
    return fraction


def subset(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """Sorted indices of a random, stratified `fraction` of images with at least one of each class.

    Raises:
        UserError: `fraction` is not above 0 and at most 1.
    """
    count = max(round(checked(fraction) * len(labels)), num_classes)
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
