"""The rules for merge strategies: every public function is one, and its docstring states what the contract requires."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import MergeStep, Score, Soup
from sparsekit.errors import RunError
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State
from sparsekit.testing import problem
from sparsekit.testing.cases import COMMON_RULES
from sparsekit.testing.compare import (
    difference,
    first_change,
    frozen,
    global_draws,
    global_seeds,
    not_finite,
    revived,
)
from sparsekit.testing.hashing import class_differs
from sparsekit.testing.merge_case import MergeCase
from sparsekit.testing.option_rules import OPTION_RULES
from sparsekit.testing.renamed import NAMES
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of

# --- one merge of trained replicas -------------------------------------------------------------------


@after("is_well_formed")
def soups_are_whole(case: MergeCase) -> None:
    """A Soup has the candidates' tensors, their names, shapes and types, all finite, and is a model that works as it
    is: its held-out loss is finite before BatchNorm is measured again.
    """
    soup, trained = case.usual.soup, case.trained
    need(isinstance(soup, Soup), f"merge() returned {type(soup).__name__}, not a Soup")
    loss = trained.setup.score(trained.parent.renamed(soup.tensors), "held_out").loss
    need(math.isfinite(loss), f"the soup's held-out loss is {loss}; is a running variance below 0?")


@after("soups_are_whole")
def zeros_stay(case: MergeCase) -> None:
    """What is 0 in the parent and in every candidate is 0 in the soup, before the core masks it again."""
    alive = revived(case.usual.soup.tensors, case.trained.parent.masks)
    need(not alive, f"{alive}, which are 0 in all candidates, are not 0 in the soup")


@after("soups_are_whole")
def shares_sum_up(case: MergeCase) -> None:
    """Coefficients, if a soup has any, are finite, one a candidate, sum up to 1, and name the ingredients: those whose
    coefficient is not 0.
    """
    soup, indices = case.usual.soup, case.usual.indices
    if soup.coefficients is None:
        return
    shares = [float(share) for share in soup.coefficients]
    need(len(shares) == len(indices), f"{len(shares)} coefficients for {len(indices)} candidates")
    need(all(map(math.isfinite, shares)) and abs(sum(shares) - 1.0) < 1e-6, f"coefficients {shares}")
    used = [index for index, share in zip(indices, shares, strict=True) if share]
    need(sorted(soup.ingredients) == used, f"ingredients {soup.ingredients} for coefficients {shares}")


@after("shares_sum_up")
def shares_are_true(case: MergeCase) -> None:
    """A soup with coefficients is the candidates' mean with them, as the optimizer's state will be; else give None."""
    soup, states = case.usual.soup, [state.named() for state in case.trained.replicas]
    for name, tensor in soup.tensors.items() if soup.coefficients is not None else ():
        if tensor.is_floating_point():
            parts = zip(soup.coefficients or (), states, strict=False)  # a merge may take fewer
            mean = torch.stack([share * state[name].double() for share, state in parts]).sum(0)
            fine = torch.allclose(tensor.double(), mean, rtol=1e-4, atol=1e-6)
            need(fine, f"{name} is not the candidates' mean with the coefficients {soup.coefficients}; give None")


@after("soups_are_whole")
def ingredients_are_replicas(case: MergeCase) -> None:
    """`ingredients` lists the `index` of each candidate that was used, once; replicas that failed leave gaps."""
    for merged in (case.usual, case.try_merge("replicas 1 and 4", indices=(1, 4))):
        got = list(merged.soup.ingredients)
        fine = bool(got) and len(set(got)) == len(got) and set(got) <= set(merged.indices)
        need(fine, f"ingredients {got} of the candidates with the indices {list(merged.indices)}")


@after("soups_are_whole")
def sees_no_test_images(case: MergeCase) -> None:
    """A merge chooses by the held-out split; it never looks at the test split."""
    need("test" not in case.usual.splits, "it evaluated on the test split")


@after("soups_are_whole")
def leaves_its_inputs_alone(case: MergeCase) -> None:
    """Neither the parent, nor the list of candidates, nor their files are changed."""
    need(not case.usual.touched, f"merge() changed {case.usual.touched} in place")


@after("soups_are_whole")
def draws_from_the_steps_generator(case: MergeCase) -> None:
    """merge() and coefficients() draw no random number but from `step.generator`: a run must repeat, whatever else was
    drawn before.
    """
    case.make()
    seen: list[tuple[str, str]] = []

    def noting(hook: str) -> Any:
        original = getattr(case.cls, hook)

        def watching(merge: Any, *given: Any) -> Any:
            with global_draws() as drawn:
                found = original(merge, *given)
            seen.extend((hook, which) for which in drawn)
            return found

        return watching

    own = [hook for hook in ("coefficients", "merge") if hasattr(case.cls, hook)]
    case.try_merge("three trained replicas", merge=case.altered(**{hook: noting(hook) for hook in own}))
    for hook, which in seen:
        raise Broken(f"{hook}() draws from {which}; draw from step.generator")


@after("soups_are_whole", "draws_from_the_steps_generator", "leaves_its_inputs_alone")
def merges_repeatably(case: MergeCase) -> None:
    """The same candidates and generator seed give the same bits: nothing is drawn but from `step.generator`, nothing
    kept in the instance.
    """
    first, merge = case.usual.soup, case.make()
    before = frozen(vars(merge))
    for seed, whose in ((1, "another instance"), (2, "an instance that merged before")):
        with global_seeds(seed):
            again = case.merge(merge=merge).soup
        name = difference(first.tensors, again.tensors)
        need(not name, f"{whose} made another {name} of the same candidates")
        same = again.coefficients == first.coefficients
        need(same, f"{whose} gave {again.coefficients} instead of {first.coefficients}")
    changed = first_change(before, merge)
    need(not changed, f"merge() changed self.{changed}; the state of a run belongs to the run")


# --- special candidates ------------------------------------------------------------------------------


@after("soups_are_whole", "zeros_stay", "merges_repeatably")
def equal_candidates_agree(case: MergeCase) -> None:
    """Where all candidates are the parent, unchanged, so is the soup. A mixture (a soup with coefficients) of equal
    candidates is that candidate.
    """
    replica, scores = case.trained.replicas[0], [case.trained.scores[0]] * 3
    parent = replace(case.trained.parent, optimizer=replica.optimizer)
    for what, state in (("the unchanged parent", parent), ("one trained replica", replica)):
        soup = case.try_merge(f"three times {what}", states=[state] * 3, scores=scores).soup
        if soup.coefficients is not None or state is parent:
            name = _far(soup.tensors, state.named())
            need(not name, f"three times {what} made another {name}")


@after("equal_candidates_agree")
def one_candidate_comes_back(case: MergeCase) -> None:
    """With one candidate there is nothing to merge: it comes back as it is."""
    soup = case.try_merge("one candidate", indices=(0,)).soup
    name = _far(soup.tensors, case.trained.replicas[0].named())
    need(not name, f"one candidate came back with another {name}")
    need(tuple(soup.ingredients) == (0,), f"one candidate gave the ingredients {tuple(soup.ingredients)}")


@after("equal_candidates_agree", "one_candidate_comes_back", "leaves_its_inputs_alone")
def merges_finished_models(case: MergeCase) -> None:
    """`sparsekit merge` has no segment: with `step.stage` None, three candidates are merged, and one comes back."""

    def outside(merge: Any, candidates: Any, step: MergeStep) -> Soup:
        soup: Soup = case.cls.merge(merge, candidates, replace(step, stage=None))
        return soup

    for indices in ((0, 1, 2), (0,)):
        what = f"{len(indices)} finished models, where step.stage is None"
        soup = case.try_merge(what, indices=indices, merge=case.altered(merge=outside)).soup
    name = _far(soup.tensors, case.trained.replicas[0].named())
    need(not name, f"{what}: it came back with another {name}")


@after("soups_are_whole", "merges_repeatably")
def hashes_decide_nothing(case: MergeCase) -> None:
    """The soup does not depend on how Python hashes names, which differs from process to process: of a set of names the
    order is sorted, and no seed is a hash(). Tried with a network whose names differ in their first letters.
    """
    case.make()
    first: Soup | None = None
    for name in NAMES:
        try:
            soup = case.merge(name=name).soup
        except Exception as error:  # as where it names a layer itself
            case.merge()  # what fails under any name is told as that
            raise Skipped(f"it cannot be tried under other names: {describe(error)}") from error
        first = first or soup
        differs = difference(first.tensors, soup.tensors)
        if first.coefficients != soup.coefficients:
            differs = "set of coefficients"
        if not differs:
            continue
        if not class_differs(case):
            return
        raise Broken(
            f"merge() depends on hashes of names: it gave another {differs} under names in the same order; go through "
            "candidate.names() or sorted(names) instead of a set, and do not use hash()"
        )


@after("soups_are_whole")
def integers_are_not_averaged(case: MergeCase) -> None:
    """Integer tensors, such as BatchNorm's counters, are one candidate's, whole."""
    counts = (10, 21, 35)
    counted = [
        replace(s, tensors={n: t if t.is_floating_point() else torch.full_like(t, c) for n, t in s.tensors.items()})
        for s, c in zip(case.trained.replicas, counts, strict=True)
    ]
    merged = case.try_merge("BatchNorm counters of 10, 21 and 35", states=counted)
    for name, tensor in merged.soup.tensors.items():
        if not counted[0].named()[name].is_floating_point():
            whole = not tensor.is_floating_point() and tensor.item() in counts
            need(whole, f"{name} is {tensor.item()} ({tensor.dtype}), of candidates with {counts}")


@after("soups_are_whole")
def handles_any_scores(case: MergeCase) -> None:
    """Equal scores, infinite losses and accuracies of 0 make a finite soup or raise RunError; never NaN."""
    case.make()
    dead = Score(0.0, math.inf)
    for what, scores in (
        ("equal scores", [Score(0.5, 1.0)] * 3),
        ("perfect scores", [Score(1.0, 0.0)] * 3),
        ("one infinite loss", [dead, Score(0.5, 1.0), Score(0.4, 2.0)]),
        ("infinite losses", [dead] * 3),
    ):
        try:
            merged = case.merge(scores=scores)
        except RunError:
            continue
        except Exception as error:
            raise Broken(f"{what}: {describe(error)}") from error
        name = not_finite(merged.soup.tensors)
        need(not name, f"{what}: {name} of the soup is not finite")


@after("soups_are_whole", "zeros_stay")
def works_at_the_extremes(case: MergeCase) -> None:
    """Candidates without a zero, and candidates with a single weight left, are merged too."""
    states = (case.trained.parent, *case.trained.replicas)
    for what, kept in (("nothing masked", None), ("all but one weight masked", 1)):
        parent, *replicas = (_with_masks(state, kept) for state in states)
        tensors = case.try_merge(what, states=replicas, parent=parent).soup.tensors
        name, alive = not_finite(tensors), revived(tensors, parent.masks)
        need(not name, f"{what}: {name} of the soup is not finite")
        need(not alive, f"{what}: {alive} are not 0 in the soup")


# --- whole runs --------------------------------------------------------------------------------------


@after(
    "soups_are_whole",
    "zeros_stay",
    "ingredients_are_replicas",
    "works_at_the_extremes",
    "keeps_its_options",
    "leaves_its_inputs_alone",
)
def ends_well(case: MergeCase) -> None:
    """A run with `gmp`, and one with `dpf`, which keeps dense weights behind its masks, end with a finite model."""
    case.make()
    for method in (GMP(interval=0.6), DPF(interval=0.6)):
        name = type(method).__name__.lower()
        try:
            run = problem.run(method, case.make())
        except Exception as error:
            raise Broken(f"with {name}: {describe(error)}") from error
        wrong = not_finite(run.final.named())
        need(not wrong, f"with {name}: the finished model's {wrong} is not finite")


def _far(left: Tensors, right: Tensors) -> str:
    """The first name whose tensors differ by more than rounding."""

    def close(one: Tensor, two: Tensor) -> bool:
        return bool(torch.allclose(one.double(), two.double(), rtol=1e-4, atol=1e-6))

    return next((name for name in right if not close(left[name], right[name])), "")


def _with_masks(state: State, kept: int | None) -> State:
    """The state with all prunable weights alive and not 0, or with only the first `kept` of them."""
    left = sum(w.numel() for w in state.weights.values()) if kept is None else kept
    weights, masks = {}, {}
    for name, weight in state.weights.items():
        masks[name] = (torch.arange(weight.numel()) < left).reshape(weight.shape)
        weights[name] = torch.where(weight == 0, 0.01, weight) * masks[name]
        left -= int(masks[name].sum())
    return replace(state.with_weights(weights), masks=masks, optimizer={})


MERGE_RULES = (*COMMON_RULES, *rules_of(globals()), *OPTION_RULES)
