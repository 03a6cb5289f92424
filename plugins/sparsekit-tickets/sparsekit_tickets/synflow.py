"""Iterative synaptic flow pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.schedules import check_option

if TYPE_CHECKING:
    from torch import Tensor as Tensor
    from torch import nn
else:
    nn = Tensor = Any


class SynFlow(PruningMethod):
    """SynFlow: prune before training, without data, where least flows through (Tanaka et al., arXiv 2006.05467).

    The score is the synaptic saliency |θ ⊙ ∂R/∂θ| with R = 1ᵀ (Π |θ_l|) 1 (equation 2): the sum of the network's
    outputs for an input of ones, where every parameter is replaced by its absolute value. It is computed again after
    each of `rounds` prunings, which remove the same fraction of what remains (algorithm 1), so that no layer is
    emptied before its time; then the mask stays. Of the data only the shape of an input is used.

    As in the authors' code BatchNorm is in evaluation mode and its scales and shifts are among the |θ|. Beyond it, its
    running mean counts as 0 and a scale of 0 as 1, which is the same in a network whose scales start at 1; in timm's
    ResNets the last one of a residual block starts at 0, which would empty the block. Computed in float64.

    Args:
        rounds: Prunings before training, 1 to 1000 (the paper: 100).

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, rounds: int = 100) -> None:
        check_option("method.rounds", rounds, 1 <= rounds <= 1000, "1 to 1000")
        self.rounds = rounds

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)

    def masks(self, step: PruningStep) -> Tensors:
        import torch

        model = positive(step.model())
        inputs, _ = next(iter(step.images("train", 1)))
        ones = torch.ones_like(inputs[:1])
        ones = ones.double() if ones.is_floating_point() else ones  # not where inputs are numbers of words
        masks, kept = step.masks, 1.0 - step.segment.sparsity
        for number in range(1, self.rounds + 1):
            done = 1.0 - kept ** (number / self.rounds)
            sparsity = step.segment.sparsity if number == self.rounds else done
            masks = step.select(saliency(model, ones, masks), sparsity=sparsity, among=masks)
        return masks


def positive(model: nn.Module) -> nn.Module:
    """The network with |θ| for its parameters, in float64, and with BatchNorm that only scales and shifts."""
    import torch

    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.zero_()
                if module.affine:
                    module.weight.masked_fill_(module.weight == 0, 1.0)
    return model


def saliency(model: nn.Module, ones: Tensor, masks: Tensors) -> Tensors:
    """|θ ⊙ ∂R/∂θ| of the weights that the masks keep, on the CPU; masks the model's own weights too."""
    import torch

    parameters = dict(model.named_parameters())
    weights = [parameters[name] for name in masks]
    with torch.no_grad():
        for weight, mask in zip(weights, masks.values(), strict=True):
            weight.mul_(mask.to(weight.device))
    gradients = torch.autograd.grad(model(ones).sum(), weights, allow_unused=True)
    return {
        name: (torch.zeros_like(weight) if gradient is None else weight.detach() * gradient).abs().cpu()
        for name, weight, gradient in zip(masks, weights, gradients, strict=True)
    }
