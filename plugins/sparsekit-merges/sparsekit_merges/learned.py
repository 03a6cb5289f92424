"""The learned soup."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal

import torch
from torch import Tensor

from sparsekit import Candidate, CoefficientMerge, MergeStep, Soup, Tensors
from sparsekit.schedules import check_option
from sparsekit_merges._shared import equal_shares, only_candidate, trained


class Learned(CoefficientMerge):
    """Fit a softmax mixture of the candidates to held-out loss by gradient (Wortsman et al., arXiv 2203.05482).

    Starts from the plain mean and keeps the mixture with the lowest loss that it saw. All candidates are in memory
    meanwhile. BatchNorm's statistics are mixed like the weights while fitting, and measured again afterwards; the
    paper's temperature on the logits is left out, since a merge sees the loss alone.

    Args:
        per: One mixture for the whole `model`, or one for each `tensor`.
        steps: Gradient steps, 1 or more; each passes over up to 1,000 held-out images.
        lr: Learning rate of Adam on the logits of the mixture, above 0.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, per: Literal["model", "tensor"] = "model", steps: int = 30, lr: float = 0.1) -> None:
        if per not in ("model", "tensor"):
            raise ValueError(f"--merge.per is {per!r}; give model or tensor")
        check_option("merge.steps", steps, steps >= 1, "1 or more")
        check_option("merge.lr", lr, 0.0 < lr < inf, "a number above 0")
        self.per, self.steps, self.lr = per, steps, lr

    def coefficients(self, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
        return self._fit(candidates, step, _mean(candidates, step), rows=1)[0].tolist()

    def merge(self, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        if len(candidates) == 1:
            return only_candidate(candidates, step)
        if self.per == "model":
            return super().merge(candidates, step)
        mean = _mean(candidates, step)  # names its tensors; finished models need have no parent
        names = trained(mean)
        shares = self._fit(candidates, step, mean, rows=len(names))
        tensors = step.average(candidates, shares.mean(0).tolist())
        for name, row in zip(names, shares, strict=True):
            stack = torch.stack([candidate.read(name).double() for candidate in candidates])
            tensors[name] = torch.tensordot(row, stack, 1).to(tensors[name].dtype)
        return Soup(tensors, None, tuple(candidate.index for candidate in candidates))

    def _fit(self, candidates: Sequence[Candidate], step: MergeStep, tensors: Tensors, rows: int) -> Tensor:
        """Shares of the candidates, float64: one row for the model, or one for each trained tensor of the mean."""
        stacks = {
            name: torch.stack([candidate.read(name) for candidate in candidates])
            for name, tensor in tensors.items()
            if tensor.is_floating_point()
        }
        names = trained(tensors)
        logits = torch.zeros(rows, len(candidates), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=self.lr)
        best, lowest = logits.detach().softmax(1), inf
        for done in range(self.steps + 1):
            shares = logits.softmax(1)
            of = dict.fromkeys(stacks, shares.detach().mean(0))  # BatchNorm cannot differentiate its statistics
            of |= dict(zip(names, shares.expand(len(names), -1), strict=True))
            mixed = {name: torch.tensordot(of[name].to(stack.dtype), stack, 1) for name, stack in stacks.items()}
            loss = step.loss(tensors | mixed)
            if not bool(torch.isfinite(loss)):
                break
            if (value := float(loss.detach())) < lowest:
                best, lowest = shares.detach(), value
            if done < self.steps:
                (logits.grad,) = torch.autograd.grad(loss, [logits])
                optimizer.step()
        return best


def _mean(candidates: Sequence[Candidate], step: MergeStep) -> Tensors:
    return step.average(candidates, equal_shares(len(candidates)))
