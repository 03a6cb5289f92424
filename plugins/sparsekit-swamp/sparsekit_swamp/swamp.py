"""Sparse weight averaging with multiple particles."""

from __future__ import annotations

from sparsekit import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.schedules import check_option


class SWAMP(PruningMethod):
    """IMP with weights averaged over particles and along their trajectories (Choi et al., arXiv 2305.14852).

    A dense round, then rounds that each prune the same fraction of what remains. In a round every particle, a replica
    with its own batch order, trains the same ticket on a schedule of its own; from `average` on the rate is constant
    and the particle becomes the mean of its weights. The merge averages the particles (`--merge uniform`, as in the
    paper), and the smallest weights of that mean are pruned. The first rounds train one particle.

    Differs from the paper in that a round goes on from the mean, with the learning rate rewound, where the paper
    rewinds the weights too.

    Args:
        dense: Fraction of the budget that the dense round takes, above 0 and below 1.
        cycles: Number of pruning rounds that share the rest, 1 to 1000.
        single: Rounds, the dense one first, that train one particle, 0 to `cycles`.
        average: Fraction of a round from which weights are averaged, 0 to below 1.
        rate: Learning rate from there on, as a fraction of `--optimizer.lr`, above 0 and up to 1.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self, dense: float = 0.3, cycles: int = 4, single: int = 2, average: float = 0.5, rate: float = 0.5
    ) -> None:
        check_option("method.dense", dense, 0.0 < dense < 1.0, "a fraction of the budget above 0 and below 1")
        check_option("method.cycles", cycles, 1 <= cycles <= 1000, "1 to 1000")
        check_option("method.single", single, 0 <= single <= cycles, f"0 to --method.cycles ({cycles})")
        check_option("method.average", average, 0.0 <= average < 1.0, "a fraction of a round from 0 to below 1")
        check_option("method.rate", rate, 0.0 < rate <= 1.0, "a fraction of --optimizer.lr above 0 and up to 1")
        self.dense, self.cycles, self.single, self.average, self.rate = dense, cycles, single, average, rate

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        kept = 1.0 - budget.sparsity
        sparsities = [1.0 - kept ** (k / self.cycles) for k in range(self.cycles)] + [budget.sparsity]
        share = (1.0 - self.dense) / self.cycles
        return tuple(
            Segment(
                sparsity,
                (share if k else self.dense) * budget.epochs,
                average_from=self.average,
                replicas=1 if k < self.single else None,
            )
            for k, sparsity in enumerate(sparsities)
        )

    def learning_rate(self, stage: Stage) -> Schedule:
        """The original schedule down to the constant rate, which is held from `average` on; anew every round."""

        def multiplier(done: float) -> float:
            if done >= self.average:
                return self.rate
            return self.rate + (1.0 - self.rate) * stage.budget.rate(done / self.average)

        return Schedule(multiplier)
