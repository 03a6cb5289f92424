"""How fast a pruning step is: ratios of what runs in turns, with room for a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from bench import load

pruning = load("pruning")
measure = load("_measure")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that share their cores with other processes wait for one another, long and at random."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_step_is_many_times_faster_than_torchs_and_needs_little_memory() -> None:
    problem = pruning.Problem()
    for index, other, least in ((0, problem.model, 15.0), (1, problem.zeros, 10.0)):
        runs = {
            "ours": measure.timed(partial(problem.ours, index)),
            "torch": partial(problem.torch_step, other, pruning.PLAN[index].sparsity),
        }
        times = measure.alternate(runs, 3)
        assert measure.ratio(times["torch"], times["ours"]).median >= least
    for index in (0, 1):
        times = measure.alternate(problem.selection(index), 15)
        assert measure.ratio(times["ours"], times["partition"]).median <= 1.5
    for what in ("ours dense", "ours sparse"):
        assert measure.child("pruning.py", "--child", what)["extra"] < 4.0


def test_the_benchmarks_figures_are_medians_of_neighbours() -> None:
    found = measure.ratio([2.0, 6.0, 50.0], [1.0, 2.0, 5.0])  # 2, 3, 10
    assert (found.median, found.pairs) == (3.0, 3)
    assert 2.0 <= found.low <= 3.0 <= found.high <= 10.0
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = measure.alternate({name: partial(run, name) for name in "ab"}, 3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]  # the first two warm up
    assert times == {"a": [4.0, 5.0, 8.0], "b": [3.0, 6.0, 7.0]}
