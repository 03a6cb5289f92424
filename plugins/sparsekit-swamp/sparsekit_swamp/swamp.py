"""Sparse weight averaging with multiple particles."""

from __future__ import annotations

from dataclasses import replace

from sparsekit import Budget, PruningMethod, Schedule, Segment, Stage
from sparsekit.schedules import check_option


class SWAMP(PruningMethod):
    """IMP with weights averaged over particles and along their trajectories (Choi et al., arXiv 2305.14852).

    A dense round, then rounds that each prune the same fraction of what remains. In a round every particle, a replica
    with its own batch order, trains the same ticket on a schedule of its own; from `average` on the rate is constant
    and the particle becomes the mean of its weights. The merge averages the particles (`--merge uniform`, as in the
    paper), and the smallest weights of that mean are pruned. The first rounds train one particle.

    The paper rewinds the weights to an early point of the dense round after each pruning, as `rewind` does. Without it
    a round goes on from the mean, and only the learning rate is rewound.

    Args:
        dense: Fraction of the budget that the dense round takes, above 0 and below 1.
        cycles: Number of pruning rounds that share the rest, 1 to 1000.
        single: Rounds, the dense one first, that train one particle, 0 to `cycles`.
        average: Fraction of a round from which weights are averaged, 0 to below 1.
        rate: Learning rate from there on, as a fraction of `--optimizer.lr`, above 0 and up to 1.
        rewind: Fraction of the dense round to whose end weights return at each pruning, 0 to `average`; without it they
            stay.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        dense: float = 0.3,
        cycles: int = 4,
        single: int = 2,
        average: float = 0.5,
        rate: float = 0.5,
        rewind: float | None = None,
    ) -> None:
        check_option("method.dense", dense, 0.0 < dense < 1.0, "a fraction of the budget above 0 and below 1")
        check_option("method.cycles", cycles, 1 <= cycles <= 1000, "1 to 1000")
        check_option("method.single", single, 0 <= single <= cycles, f"0 to --method.cycles ({cycles})")
        check_option("method.average", average, 0.0 <= average < 1.0, "a fraction of a round from 0 to below 1")
        check_option("method.rate", rate, 0.0 < rate <= 1.0, "a fraction of --optimizer.lr above 0 and up to 1")
        valid = rewind is None or 0.0 <= rewind <= average
        check_option(
            "method.rewind", rewind or 0.0, valid, f"a fraction of the dense round, 0 to --method.average ({average:g})"
        )
        self.dense, self.cycles, self.single = dense, cycles, single
        self.average, self.rate, self.rewind = average, rate, rewind

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        kept = 1.0 - budget.sparsity
        sparsities = [1.0 - kept ** (k / self.cycles) for k in range(self.cycles)] + [budget.sparsity]
        share = (1.0 - self.dense) / self.cycles
        rounds = [
            Segment(
                sparsity,
                (share if k else self.dense) * budget.epochs,
                average_from=self.average,
                replicas=1 if k < self.single else None,
            )
            for k, sparsity in enumerate(sparsities)
        ]
        if self.rewind is None:
            return tuple(rounds)
        dense = self._parts(rounds[0], self.rewind)
        return (*dense, *(replace(each, rewind=len(dense) - 1) for each in rounds[1:]))

    def _parts(self, dense: Segment, rewind: float) -> list[Segment]:
        """The dense round up to where weights return, and from there on."""
        if not rewind:
            return [dense]
        late = (self.average - rewind) / (1.0 - rewind)
        rest = replace(dense, epochs=(1.0 - rewind) * dense.epochs, average_from=late)
        return [replace(dense, epochs=rewind * dense.epochs, average_from=None), rest]

    def learning_rate(self, stage: Stage) -> Schedule:
        """The original schedule down to the constant rate, which is held from `average` on; anew every round."""
        first, last = 0.0, 1.0
        if self.rewind:
            first, last = [(0.0, self.rewind), (self.rewind, 1.0), (0.0, 1.0)][min(stage.index, 2)]

        def multiplier(part: float) -> float:
            done = first + part * (last - first)
            if done >= self.average:
                return self.rate
            return self.rate + (1.0 - self.rate) * stage.budget.rate(done / self.average)

        return Schedule(multiplier, restarts=first == 0.0)
