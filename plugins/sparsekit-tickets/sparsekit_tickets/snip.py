"""Single-shot network pruning."""

from __future__ import annotations

from sparsekit import Budget, PruningMethod, PruningStep, Segment, Tensors
from sparsekit.schedules import check_option


class SNIP(PruningMethod):
    """SNIP: prune once, before training, where |gradient · weight| is smallest (Lee et al., arXiv 1810.02340).

    The score is the connection sensitivity |∂L/∂c| = |g ⊙ w| at c = 1 (equation 4), in all layers together; the paper
    divides it by its sum, which changes no order. The gradient is that of `batches` training batches at the first
    weights; then the mask stays.

    A layer whose scores are all 0 says nothing of its weights: so are those before a BatchNorm whose scale starts at 0,
    as in the residual blocks of timm's ResNets. They are scored by |w|, on average like a weight of the other layers,
    and `metrics.jsonl` has the number of such layers as `method.blind_layers`. The model's option
    `zero_init_last: false` gives them gradients, as in the paper.

    Args:
        batches: Training batches over which the gradient is averaged, 1 to 1000 (the paper: 1).

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, batches: int = 1) -> None:
        check_option("method.batches", batches, 1 <= batches <= 1000, "1 to 1000")
        self.batches = batches

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        return (Segment(budget.sparsity, budget.epochs),)

    def scores(self, step: PruningStep) -> Tensors:
        gradients = step.gradients(self.batches)
        scores = {name: (gradients[name] * weight).abs() for name, weight in step.weights.items()}
        blind = [name for name, score in scores.items() if not score.any()]
        step.log("blind_layers", len(blind))
        seen = sum(int(step.masks[name].sum()) for name in scores if name not in blind)
        mean = sum(float(score.double().sum()) for score in scores.values()) / max(seen, 1)
        for name in blind:
            size, count = step.weights[name].abs(), int(step.masks[name].sum())
            scores[name] = size * (mean * count / max(float(size.double().sum()), 1e-30))
        return scores
