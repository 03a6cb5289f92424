"""Which examples stay, are held out, or are cut off: folds and limits, counted by hand."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from sparsekit.config.options import DataConfig
from sparsekit.data.choose import cut_test, folded, limited, split
from sparsekit.errors import UserError

LABELS = torch.tensor([0] * 7 + [1] * 12 + [2] * 23)
COUNT = len(LABELS)


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_every_example_is_held_out_in_one_fold_and_every_class_has_its_share(
    folds: int, labels: torch.Tensor | None
) -> None:
    seen: list[int] = []
    for which in range(1, folds + 1):
        train, held_out = folded(COUNT, labels, f"{which}/{folds}")
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(COUNT))
        assert held_out.tolist() == sorted(held_out.tolist())
        assert len(held_out) in (COUNT // folds, -(-COUNT // folds))
        seen += held_out.tolist()
        if labels is not None:
            for name, count in Counter(LABELS.tolist()).items():
                share = int((LABELS[held_out] == name).sum())
                assert share in (count // folds, -(-count // folds)), (which, name)
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_smaller_choice_is_part_of_a_larger_one(labels: torch.Tensor | None) -> None:
    indices = torch.arange(100, 100 + COUNT)
    before: set[int] = set()
    for limit in (9.0, 0.5, 30.0, float(COUNT)):
        found = limited(indices, labels, limit)
        assert len(found) == (limit if limit >= 1 else round(limit * COUNT))
        assert before <= set(found.tolist()) <= set(indices.tolist())
        assert found.tolist() == sorted(found.tolist())
        before = set(found.tolist())
        if labels is not None:
            shares = Counter(LABELS[found - 100].tolist())
            for name, count in Counter(LABELS.tolist()).items():
                assert abs(shares[name] - count * len(found) / COUNT) <= 1.0
    assert torch.equal(limited(indices, labels, 9.0), limited(indices, labels, 9.0))


def test_tests_are_cut_off_class_by_class() -> None:
    train, test = cut_test(COUNT, LABELS, 0.25, "--data.test_fraction")
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(COUNT))
    assert Counter(LABELS[test].tolist()) in ({0: 2, 1: 3, 2: 6}, {0: 2, 1: 3, 2: 5}, {0: 1, 1: 3, 2: 6})


def test_the_test_examples_are_the_same_in_every_fold() -> None:
    found = [
        split(COUNT, LABELS, 3, DataConfig(fold=f"{k}/4", held_out=0.2), held_out=False, test=False)
        for k in (1, 2, 3, 4)
    ]
    tests = [parts[2] for parts in found]
    assert all(test is not None and torch.equal(test, tests[0]) for test in tests)  # type: ignore[arg-type]
    for train, held_out, test in found:
        assert held_out is not None
        assert test is not None
        assert sorted([*train.tolist(), *held_out.tolist(), *test.tolist()]) == list(range(COUNT))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: folded(COUNT, LABELS, "3/2"), r"--data.fold is 3/2; give k/n"),
        (lambda: folded(COUNT, LABELS, "8/8"), r"--data.fold 8/8 leaves 5 examples without any of class 0; give fewer"),
        (lambda: folded(3, None, "1/8"), r"--data.fold 1/8: there are 3 examples; give fewer folds"),
        (lambda: limited(torch.arange(COUNT), LABELS, 2.0), r"--data.limit 2 leaves 2 examples .* class \d; give more"),
        (lambda: limited(torch.arange(COUNT), None, 43.0), r"--data.limit 43 of 42 training examples; give 1 to 42"),
        (lambda: limited(torch.arange(COUNT), None, 1.5), r"--data.limit is 1.5; give a number of examples, 1 or more"),
        (lambda: cut_test(COUNT, None, 1.0, "--data.test_fraction"), r"--data.test_fraction 1 of 42 examples; give"),
    ],
)
def test_what_cannot_be_chosen_is_told(call: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()  # type: ignore[operator]
    assert re.search(words, str(caught.value)), caught.value
