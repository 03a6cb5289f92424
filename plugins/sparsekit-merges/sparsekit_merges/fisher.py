"""Fisher-weighted averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sparsekit import Candidate, MergeStep, MergeStrategy, Soup, Tensors
from sparsekit.schedules import check_option
from sparsekit_merges._shared import equal_shares, only_candidate

FLOOR = 1e-6
"""Smallest information of a weight in a diagonal of norm 1."""


class Fisher(MergeStrategy):
    """Weigh every weight by its Fisher information, Σ F_i w_i / Σ F_i (Matena and Raffel, arXiv 2111.09832).

    F_i is the diagonal of candidate i's empirical Fisher information, squared gradients on training images, divided by
    its L2 norm over all parameters, and 1e-6 where that is less. So candidates weigh alike as a whole, however large
    their gradients are. Where no candidate has any, as in BatchNorm's statistics and at weights that nothing passes
    through, it is the plain mean. The authors' code takes the floor before it divides by the norm.

    Args:
        images: Training images from which a candidate's Fisher information is estimated, 1 or more: without
            augmentation, in evaluation mode, one gradient an image; the true label in place of the paper's expectation
            over predicted ones.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, images: int = 256) -> None:
        check_option("merge.images", images, images >= 1, "1 or more")
        self.images = images

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        if len(candidates) == 1:
            return only_candidate(candidates, step)
        tensors = step.average(candidates, equal_shares(len(candidates)))
        total: Tensors = {}
        weighted: Tensors = {}
        for candidate in candidates:
            for name, share in _scaled(step.fisher(candidate, images=self.images)).items():
                total[name] = total.get(name, torch.zeros_like(share)) + share
                product = share * candidate.read(name).double()
                weighted[name] = weighted.get(name, torch.zeros_like(product)) + product
        for name, information in total.items():
            tensors[name] = (weighted[name] / information).to(tensors[name].dtype)
        return Soup(tensors, None, tuple(candidate.index for candidate in candidates))


def _scaled(information: Tensors) -> Tensors:
    """A diagonal in float64, divided by its L2 norm over all tensors, and `FLOOR` where that is less."""
    doubles = {name: tensor.double() for name, tensor in information.items()}
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in doubles.values()))
    return {name: (tensor / (norm or 1.0)).clamp(min=FLOOR) for name, tensor in doubles.items()}
