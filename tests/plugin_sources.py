"""Sources of sound plugins for tests to install or to spoil, and the command line run on them."""

from __future__ import annotations

import pytest

from sparsekit.cli import main

METHOD = '''\
"""A plugin for tests."""
from sparsekit.api import Budget, PruningMethod, Segment


class Thing(PruningMethod):
    """Prune once, after a share of the budget."""

    def __init__(self, share: float = 0.25) -> None:
        self.share = share

    def plan(self, budget: Budget) -> tuple[Segment, ...]:
        dense = self.share * budget.epochs
        return (Segment(0.0, dense), Segment(budget.sparsity, budget.epochs - dense))
'''
MERGE = '''\
"""A plugin for tests."""
from sparsekit.api import CoefficientMerge


class Thing(CoefficientMerge):
    """The first candidate."""

    def coefficients(self, candidates, step):
        return [1.0] + [0.0] * (len(candidates) - 1)
'''


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()
