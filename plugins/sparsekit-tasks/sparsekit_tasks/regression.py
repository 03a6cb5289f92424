"""Numbers for each example."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsekit.api import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Regression(Task):
    """One number or several for each example: mean squared error of targets [N] or [N, K]; scored by R2.

    R2 is the mean over the K numbers of 1 − Σ (target − output)² / Σ (target − mean target)². Targets are taken as they
    are: bring them to about unit scale, as a network's outputs are at its start.
    """

    score_name: ClassVar[str] = "R2"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn.functional import mse_loss

        return mse_loss(outputs.reshape(targets.shape), targets.to(outputs.dtype))

    def per_example(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The mean squared error of each example, as `loss`."""
        squared = (outputs.reshape(targets.shape) - targets).square()
        return {"loss": squared.reshape(len(targets), -1).mean(1)}

    def constant_outputs(self, targets: Tensor) -> Tensor:
        """The mean of the targets."""
        return targets.reshape(len(targets), -1).double().mean(0)

    def meter(self, device: torch.device) -> ErrorMeter:
        return ErrorMeter()

    def num_outputs(self, targets: Tensor) -> int:
        return targets.shape[1] if targets.dim() > 1 else 1

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.dim() not in (1, 2) or targets.is_complex():
            raise ValueError("targets must be a number each, or a row of numbers each")
        count = self.num_outputs(targets)
        if outputs.shape != (len(targets), count) and outputs.shape != targets.shape:
            raise ValueError(f"there must be {count} output{'s' * (count != 1)} each")


class ErrorMeter:
    """R2 and the mean absolute error, from sums that are centred on the first example.

    torchmetrics' R2Score takes each sum of squares below 1e-4 for 0, which makes small targets perfectly fitted.
    """

    def __init__(self) -> None:
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs and targets [N] or [N, K]."""
        from torch import stack

        targets = targets.reshape(len(targets), -1).double()
        errors = targets - outputs.reshape(targets.shape).double()
        if not self._count:
            self._origin = targets[0].clone()
            self._sums = targets.new_zeros(4, targets.shape[1])
        centred = targets - self._origin
        values = centred, centred.square(), errors.square(), errors.abs()
        self._sums = self._sums + stack([each.sum(0) for each in values])
        self._count += len(targets)

    def compute(self) -> dict[str, float]:
        """The measures of all batches; a number that is the same in all targets has R2 1 if it is met, else 0."""
        total, squares, residual, absolute = self._sums
        spread = squares - total.square() / self._count
        constant = spread <= 0.0
        r2 = (1.0 - residual / spread.masked_fill(constant, 1.0)).where(~constant, (residual == 0.0).double())
        return {"R2": float(r2.mean()), "MAE": float(absolute.mean() / self._count)}
