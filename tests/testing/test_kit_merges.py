"""Every rule for merges catches the fault that it is there for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plugin_classes import Mean, by_zeros, counting, merge, option, tried
from torch import Tensor

from sparsekit.api import Candidate, CoefficientMerge, MergeStep, Soup
from sparsekit.config.options import DataConfig
from sparsekit.data import ImageData
from sparsekit.testing.merge_case import MergeCase
from sparsekit.testing.merge_rules import MERGE_RULES


def soup_of(change: Any, coefficients: bool = False) -> Any:
    """A merge() that does something to the plain mean's tensors."""

    def merge(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
        soup = Mean.merge(self, candidates, step)
        tensors = {name: change(name, tensor) for name, tensor in soup.tensors.items()}
        return Soup(
            {n: t for n, t in tensors.items() if t is not None},
            soup.coefficients if coefficients else None,
            soup.ingredients,
        )

    return merge


def floats(change: Any) -> Any:
    return lambda name, tensor: change(tensor) if tensor.is_floating_point() else tensor


def by_place(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    return Soup(soup.tensors, soup.coefficients, tuple(range(len(candidates))))


def miscounts(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    return Soup(soup.tensors, soup.coefficients, (candidates[0].index,))


def halves(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    mean = Mean.merge(self, candidates, step)
    return Soup(mean.tensors, tuple(c / 2 for c in mean.coefficients or ()), mean.ingredients)


def peeks(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    data = ImageData.load(DataConfig(image_size=8), torch.device("cpu"), False)
    next(iter(data.evaluation_batches("test")))
    return Mean.coefficients(self, candidates, step)


def sorts(self: Any, candidates: Any, step: MergeStep) -> Sequence[float]:
    candidates.sort(key=lambda c: -c.index)
    return Mean.coefficients(self, candidates, step)


def moves_parent(self: Any, candidates: Any, step: MergeStep) -> Sequence[float]:
    step.parent["fc.bias"].add_(1.0)
    return Mean.coefficients(self, candidates, step)


def at_random(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    shares = torch.rand(len(candidates)).double()
    return [float(x) for x in shares / shares.sum()]


def ever_less(self: Any, count: int, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    rest = len(candidates) - 1
    return [1.0 - rest * 0.1 / count] + [0.1 / count] * rest


def by_loss(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    shares = [1.0 / c.score.loss for c in candidates]
    return [share / sum(shares) for share in shares]


def towards_parent(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    tensors = {n: t.lerp(step.parent[n], 0.5) if t.is_floating_point() else t for n, t in soup.tensors.items()}
    return Soup(tensors, None, soup.ingredients)


def averages_all(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Soup:
    soup = Mean.merge(self, candidates, step)
    tensors = {
        name: torch.stack([c.read(name).double() for c in candidates]).mean(0).to(tensor.dtype)
        for name, tensor in soup.tensors.items()
    }
    return Soup(tensors, None, soup.ingredients)


def needs_own(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    candidates[0].read("extra.own")
    return Mean.coefficients(self, candidates, step)


def below_zero(name: str, tensor: Tensor) -> Tensor:
    return tensor - 100.0 if name.endswith("running_var") else tensor


def by_stage(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    assert step.stage is None or step.stage.segment
    last = step.stage.last  # type: ignore[union-attr]
    return Mean.coefficients(self, candidates, step) if last else [1.0] + [0.0] * (len(candidates) - 1)


def by_set(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    """By the norm of the tensor that comes first in a set."""
    name = next(iter({name for name in candidates[0].names() if name.endswith(("weight", "bias"))}))
    sizes = [1.0 + float(c.read(name).abs().sum()) for c in candidates]
    return [size / sum(sizes) for size in sizes]


def single(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    torch.set_default_dtype(torch.float64)
    return Mean.coefficients(self, candidates, step)


def tempered(self: Any, candidates: Sequence[Candidate], step: MergeStep) -> Sequence[float]:
    shares = [math.exp(-c.score.loss / self.heat) for c in candidates]
    return [share / sum(shares) for share in shares]


MERGES: list[tuple[str, type[Any], str]] = [
    ("is_well_formed", merge(doc=None), "has no docstring"),
    ("is_well_formed", merge(CoefficientMerge), r"lacks the method coefficients\(\)"),
    ("is_well_formed", merge(max_replicas=0), "max_replicas is 0"),
    ("is_well_formed", merge(average_from=1.0), "average_from is 1.0"),
    ("is_well_formed", merge(average_decay=1.5), "average_decay is 1.5"),
    ("keeps_its_options", merge(__init__=option("share", 0.5, keep=False)), "there is no self.share"),
    ("soups_are_whole", merge(merge=lambda s, candidates, step: step.parent), r"merge\(\) must return a Soup"),
    ("soups_are_whole", merge(merge=soup_of(lambda n, t: None if n == "fc.bias" else t)), "'fc.bias' is missing"),
    ("soups_are_whole", merge(merge=soup_of(floats(lambda t: t * math.nan))), "is not finite"),
    ("soups_are_whole", merge(merge=soup_of(floats(lambda t: t.double()))), "torch.float64"),
    ("soups_are_whole", merge(merge=soup_of(below_zero)), "held-out loss is inf; is a running variance below 0"),
    ("soups_are_whole", merge(coefficients=lambda s, candidates, step: [1.0]), "coefficients"),
    ("zeros_stay", merge(merge=soup_of(floats(lambda t: t + 0.01))), "which are 0 in all candidates, are not 0"),
    ("soups_are_whole", merge(merge=halves), "gave coefficients"),
    ("shares_sum_up", merge(merge=miscounts), r"ingredients \(0,\) for coefficients \[0.33"),
    ("shares_are_true", merge(merge=soup_of(floats(lambda t: t * 0.99), True)), "candidates' mean .* give None"),
    ("ingredients_are_replicas", merge(merge=by_place), "names replica 0"),
    ("sees_no_test_images", merge(coefficients=peeks), "it evaluated on the test split"),
    ("leaves_its_inputs_alone", merge(coefficients=sorts), "the order of the candidates"),
    ("leaves_its_inputs_alone", merge(coefficients=moves_parent), "changed fc.bias in place"),
    ("leaves_its_inputs_alone", merge(coefficients=single), "changed torch.set_default_dtype for the whole process"),
    (
        "draws_from_the_steps_generator",
        merge(coefficients=at_random),
        r"coefficients\(\) draws from torch's global generator; draw from step.generator",
    ),
    (
        "merges_finished_models",
        merge(coefficients=by_stage),
        r"3 finished models, where step.stage is None: AttributeError",
    ),
    ("hashes_decide_nothing", merge(coefficients=by_set), r"merge\(\) depends on hashes of names: .* sorted\(names\)"),
    ("refuses_bad_options", merge(__init__=option("share", 0.5)), r"share=nan is taken; .*--merge.share is nan"),
    (
        "refuses_bad_options",
        merge(__init__=option("heat", 1, int), coefficients=tempered),
        r"(?s)heat=-?\d is taken, and then: .*--merge.heat",
    ),
    ("merges_repeatably", merge(coefficients=at_random), "made another .* of the same candidates"),
    ("merges_repeatably", merge(**counting("coefficients", ever_less)), "an instance that merged before made another"),
    (
        "merges_repeatably",
        merge(**counting("coefficients", lambda s, n, c, step: Mean.coefficients(s, c, step))),
        r"merge\(\) changed self.calls",
    ),
    ("equal_candidates_agree", merge(merge=soup_of(floats(lambda t: t * 1.01))), "three times the unchanged parent"),
    ("equal_candidates_agree", merge(merge=soup_of(floats(lambda t: t * 1.01), True)), "made another"),
    ("one_candidate_comes_back", merge(merge=towards_parent), "one candidate came back with another"),
    ("integers_are_not_averaged", merge(merge=averages_all), r"num_batches_tracked is 22 \(torch.int64\)"),
    ("handles_any_scores", merge(coefficients=by_loss), "perfect scores: ZeroDivisionError"),
    ("works_at_the_extremes", merge(coefficients=by_zeros), "nothing masked: ZeroDivisionError"),
    ("ends_well", merge(coefficients=needs_own), "with gmp: "),
]


@pytest.mark.parametrize(("rule", "cls", "finding"), MERGES, ids=[f"{row[0]}-{n}" for n, row in enumerate(MERGES)])
def test_every_rule_for_merges_catches_its_fault(rule: str, cls: type[Any], finding: str) -> None:
    outcome = tried(MERGE_RULES, rule, MergeCase(cls))
    assert outcome.state == "FAIL"
    assert re.search(finding, outcome.finding), outcome.finding


def test_every_rule_is_in_the_table_above() -> None:
    assert {rule.__name__ for rule in MERGE_RULES} == {*(row[0] for row in MERGES)}
