"""Regression mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit import Candidate, MergeStep, MergeStrategy, Soup, Tensors
from sparsekit.schedules import check_option
from sparsekit_merges._shared import equal_shares, only_candidate

_PART = 16
"""Images whose patches are in memory at a time."""


class RegMean(MergeStrategy):
    """Regress each layer on what all candidates' layers give for their inputs (Jin et al., arXiv 2212.09849).

    W = (Σ Gᵢ)⁻¹ Σ Gᵢ Wᵢ with Gᵢ = XᵢᵀXᵢ (equation 2), Xᵢ the inputs of candidate i's layer on training images, for
    Linear layers and, by their patches, for plain Conv2d layers; off-diagonals of Gᵢ are multiplied by α. Everything
    else is the plain mean. The regression is over the weights that the mask keeps, each output by itself, so that
    nothing has to be cut off afterwards; without zeros it is the paper's.

    Args:
        alpha: α, the factor of the off-diagonals, 0 to 1; 0 weighs each weight by the mean square of its input.
        images: Training images from which a candidate's inputs are taken, 1 or more.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, alpha: float = 0.9, images: int = 256) -> None:
        check_option("merge.alpha", alpha, 0.0 <= alpha <= 1.0, "a factor from 0 to 1")
        check_option("merge.images", images, images >= 1, "1 or more")
        self.alpha, self.images = alpha, images

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        if len(candidates) == 1:
            return only_candidate(candidates, step)
        tensors = step.average(candidates, equal_shares(len(candidates)))
        grams: Tensors = {}
        pulls: Tensors = {}
        for candidate in candidates:
            model = step.model({name: candidate.read(name) for name in candidate.names()})
            batches = (inputs for inputs, _ in step.images("train", self.images))
            for name, found in layer_grams(model, batches).items():
                gram = found * self.alpha
                gram.diagonal(dim1=1, dim2=2).copy_(found.diagonal(dim1=1, dim2=2))
                change = candidate.read(name).double() - tensors[name].double()
                change = change * step.masks.get(name, torch.tensor(True))
                pull = change.reshape(len(gram), -1, gram.shape[1]) @ gram
                grams[name] = grams[name] + gram if name in grams else gram
                pulls[name] = pulls[name] + pull if name in pulls else pull
        for name, gram in grams.items():
            kept = step.masks.get(name, torch.ones_like(tensors[name], dtype=torch.bool)).reshape(pulls[name].shape)
            change = torch.stack([solved(*group) for group in zip(gram, pulls[name], kept, strict=True)])
            merged = tensors[name].double() + change.reshape(tensors[name].shape)
            tensors[name] = merged.to(tensors[name].dtype)
        return Soup(tensors, None, tuple(candidate.index for candidate in candidates))


def layer_grams(model: nn.Module, batches: Iterable[Tensor]) -> Tensors:
    """XᵀX of each layer's inputs, by its weight's name: float64 [groups, inputs, inputs] on the CPU."""
    grams: Tensors = {}

    def add(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        for part in given[0].split(_PART):
            rows = layer_inputs(module, part.detach()).double()
            gram = rows.mT @ rows
            grams[name] = grams[name] + gram if name in grams else gram

    named = dict(model.named_parameters())
    for path, module in model.named_modules():
        name = f"{path}.weight" if path else "weight"
        if name in named and takes_rows(module):
            module.register_forward_pre_hook(partial(add, name))
    with torch.no_grad():
        for inputs in batches:
            model(inputs)
    return {name: gram.cpu() for name, gram in grams.items()}


def takes_rows(module: nn.Module) -> bool:
    """Whether a layer is a linear map of rows: Linear, or a Conv2d that pads with zeros. Subclasses may do anything."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def layer_inputs(module: Any, inputs: Tensor) -> Tensor:
    """The rows that a layer's weights, [outputs, inputs] in each group, are multiplied with: [groups, rows, inputs]."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, module.in_features)
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def solved(gram: Tensor, pull: Tensor, kept: Tensor) -> Tensor:
    """The change of each output's kept weights by least squares: gram [i, i], pull and kept [o, i]; 0 where not kept.

    A billionth of the mean diagonal is added to the diagonal, as inputs that are always 0 leave the weight open.
    """
    diagonal = gram.diagonal()
    gram = gram + torch.diag(torch.full_like(diagonal, 1e-9 * float(diagonal.mean()) + 1e-30))
    change = torch.zeros_like(pull)
    for row in kept.unique(dim=0):  # outputs of one mask are solved together: of a dense layer all
        outputs, at = (kept == row).all(1).nonzero()[:, 0], row.nonzero()[:, 0]
        if len(at):
            change[outputs[:, None], at] = torch.linalg.solve(gram[at][:, at], pull[outputs][:, at].T).T
    return change
