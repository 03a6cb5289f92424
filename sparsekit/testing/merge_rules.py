"""The rules for merge strategies; each docstring says what the contract asks. A new rule goes into `MERGE_RULES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from sparsekit._types import Tensor, Tensors
from sparsekit.api import Score, Soup
from sparsekit.errors import RunError
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State
from sparsekit.testing import problem
from sparsekit.testing.merge_case import MergeCase
from sparsekit.testing.problem import difference, first_change, frozen, global_seeds
from sparsekit.testing.rules import Broken, describe, need

# --- the class ---------------------------------------------------------------------------------------


def is_well_formed(case: MergeCase) -> None:
    """The class subclasses MergeStrategy, defines merge() or coefficients(), has a docstring, and names and annotates
    every option; `max_replicas` is None or 1 and more, `average_from` None or a fraction from 0 to below 1.
    """
    case.check_form()
    limit, start = case.cls.max_replicas, case.make().average_from
    need(limit is None or (type(limit) is int and limit >= 1), f"max_replicas is {limit!r}")
    need(start is None or 0.0 <= start < 1.0, f"average_from is {start!r}")


def keeps_its_options(case: MergeCase) -> None:
    """Every option is kept under its own name, as it was given, and can be written to config.yaml and read again."""
    case.check_options()


# --- one merge of trained replicas -------------------------------------------------------------------


def soups_are_whole(case: MergeCase) -> None:
    """A Soup has the candidates' tensors, their names, shapes and types, all finite, and is a model that works as it
    is: its held-out loss is finite before BatchNorm is measured again.
    """
    if case.usual_error:
        raise Broken(describe(case.usual_error)) from case.usual_error
    soup, setup = case.usual.soup, case.ground.setup
    need(isinstance(soup, Soup), f"merge() returned {type(soup).__name__}, not a Soup")
    loss = setup.score(case.ground.parent.renamed(soup.tensors), "held_out").loss
    need(math.isfinite(loss), f"the soup's held-out loss is {loss}; is a running variance below 0?")


def zeros_stay(case: MergeCase) -> None:
    """What is 0 in the parent and in every candidate is 0 in the soup, before the core masks it again."""
    merged = case.usual
    for name, mask in case.ground.parent.masks.items():
        revived = int((merged.soup.tensors[name][~mask] != 0).sum())
        need(not revived, f"{revived} weights of {name} that all candidates have at 0 are not 0 in the soup")


def shares_sum_up(case: MergeCase) -> None:
    """Coefficients, if a soup has any, are finite, one a candidate, sum up to 1, and name the ingredients: those whose
    coefficient is not 0.
    """
    soup, candidates = case.usual.soup, case.usual.candidates
    if soup.coefficients is None:
        return
    shares = [float(share) for share in soup.coefficients]
    need(len(shares) == len(candidates), f"{len(shares)} coefficients for {len(candidates)} candidates")
    need(all(map(math.isfinite, shares)) and abs(sum(shares) - 1.0) < 1e-6, f"coefficients {shares}")
    used = tuple(c.index for c, share in zip(candidates, shares, strict=True) if share)
    need(sorted(soup.ingredients) == list(used), f"ingredients {soup.ingredients} for coefficients {shares}")


def ingredients_are_replicas(case: MergeCase) -> None:
    """`ingredients` lists the `index` of each candidate that was used, once; replicas that failed leave gaps."""
    for merged in (case.usual, case.try_merge("replicas 1 and 4", case.candidates(indices=(1, 4)))):
        known, got = [c.index for c in merged.candidates], list(merged.soup.ingredients)
        fine = bool(got) and len(set(got)) == len(got) and set(got) <= set(known)
        need(fine, f"ingredients {got} of the candidates with the indices {known}")


def sees_no_test_images(case: MergeCase) -> None:
    """A merge chooses by the held-out split; it never looks at the test split."""
    need("test" not in case.usual.splits, "it evaluated on the test split")


def leaves_its_inputs_alone(case: MergeCase) -> None:
    """Neither the parent, nor the list of candidates, nor their files are changed."""
    need(not case.usual.touched, f"merge() changed {case.usual.touched} in place")


def merges_repeatably(case: MergeCase) -> None:
    """The same candidates and generator seed give the same bits: nothing is drawn but from `step.generator`, nothing
    kept in the instance.
    """
    first, merge = case.usual, case.make()
    before = frozen(vars(merge))
    for seed, instance, whose in ((1, merge, "another instance"), (2, merge, "an instance that merged before")):
        with global_seeds(seed):
            again = case.merge(case.candidates(), instance)
        name = difference(first.soup.tensors, again.soup.tensors)
        need(not name, f"{whose} made another {name} of the same candidates")
        same = again.soup.coefficients == first.soup.coefficients
        need(same, f"{whose} gave {again.soup.coefficients} instead of {first.soup.coefficients}")
    changed = first_change(before, frozen(vars(merge)))
    need(not changed, f"merge() changed self.{changed}; the state of a run belongs to the run")


# --- special candidates ------------------------------------------------------------------------------


def equal_candidates_agree(case: MergeCase) -> None:
    """Where all candidates are the parent, unchanged, so is the soup. A mixture (a soup with coefficients) of equal
    candidates is that candidate.
    """
    ground = case.ground
    parent = replace(ground.parent, optimizer=ground.replicas[0].optimizer)
    for what, state in (("the unchanged parent", parent), ("one trained replica", ground.replicas[0])):
        merged = case.try_merge(f"three times {what}", case.candidates([state] * 3, [ground.scores[0]] * 3))
        if merged.soup.coefficients is None and state is not parent:
            continue
        name = _far(merged.soup.tensors, state.named())
        need(not name, f"three times {what} made another {name}")


def one_candidate_comes_back(case: MergeCase) -> None:
    """With one candidate there is nothing to merge: it comes back as it is."""
    candidates = case.candidates()[:1]
    merged = case.try_merge("one candidate", candidates)
    name = _far(merged.soup.tensors, case.ground.replicas[0].named())
    need(not name, f"one candidate came back with another {name}")
    got = tuple(merged.soup.ingredients)
    need(got == (candidates[0].index,), f"one candidate gave the ingredients {got}")


def integers_are_not_averaged(case: MergeCase) -> None:
    """Integer tensors, such as BatchNorm's counters, are one candidate's, whole."""
    counts = (10, 21, 35)
    doctored = [
        replace(s, tensors={n: t if t.is_floating_point() else torch.full_like(t, c) for n, t in s.tensors.items()})
        for s, c in zip(case.ground.replicas, counts, strict=True)
    ]
    merged = case.try_merge("BatchNorm counters of 10, 21 and 35", case.candidates(doctored))
    for name, tensor in merged.soup.tensors.items():
        if not doctored[0].named()[name].is_floating_point():
            whole = not tensor.is_floating_point() and tensor.item() in counts
            need(whole, f"{name} is {tensor.item()} ({tensor.dtype}), of candidates with {counts}")


def handles_any_scores(case: MergeCase) -> None:
    """Equal scores, infinite losses and accuracies of 0 make a finite soup or raise RunError; never NaN."""
    dead = Score(0.0, math.inf)
    for what, scores in (
        ("equal scores", [Score(0.5, 1.0)] * 3),
        ("perfect scores", [Score(1.0, 0.0)] * 3),
        ("one infinite loss", [dead, Score(0.5, 1.0), Score(0.4, 2.0)]),
        ("infinite losses", [dead] * 3),
    ):
        try:
            merged = case.merge(case.candidates(scores=scores))
        except RunError:
            continue
        except Exception as error:
            raise Broken(f"{what}: {describe(error)}") from error
        name = _not_finite(merged.soup.tensors)
        need(not name, f"{what}: {name} of the soup is not finite")


def works_at_the_extremes(case: MergeCase) -> None:
    """Candidates without a zero, and candidates with a single weight left, are merged too."""
    ground = case.ground
    dense = [_with_masks(state, kept=None) for state in (ground.parent, *ground.replicas)]
    single = [_with_masks(state, kept=1) for state in (ground.parent, *ground.replicas)]
    for what, (parent, *replicas) in (("nothing masked", dense), ("all but one weight masked", single)):
        merged = case.try_merge(what, case.candidates(replicas), parent=parent)
        name = _not_finite(merged.soup.tensors)
        need(not name, f"{what}: {name} of the soup is not finite")
        for name, mask in parent.masks.items():
            revived = int((merged.soup.tensors[name][~mask] != 0).sum())
            need(not revived, f"{what}: {revived} masked weights of {name} are not 0 in the soup")


# --- whole runs --------------------------------------------------------------------------------------


def ends_well(case: MergeCase) -> None:
    """A run with `gmp`, and one with `dpf`, which keeps dense weights behind its masks, end with a finite model."""
    for method in (GMP(interval=0.3), DPF(interval=0.3)):
        name = type(method).__name__.lower()
        try:
            run = problem.run(method, case.make())
        except Exception as error:
            raise Broken(f"with {name}: {describe(error)}") from error
        wrong = _not_finite(run.final.named())
        need(not wrong, f"with {name}: the finished model's {wrong} is not finite")


def _far(left: Tensors, right: Tensors) -> str:
    """The first name whose tensors differ by more than rounding."""

    def close(one: Tensor, two: Tensor) -> bool:
        return bool(torch.allclose(one.double(), two.double(), rtol=1e-4, atol=1e-6))

    return next((name for name in right if not close(left[name], right[name])), "")


def _not_finite(tensors: Tensors) -> str:
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), "")


def _with_masks(state: State, kept: int | None) -> State:
    """The state with all prunable weights alive and not 0, or with only the first `kept` of them."""
    left = sum(w.numel() for w in state.weights.values()) if kept is None else kept
    weights, masks = {}, {}
    for name, weight in state.weights.items():
        masks[name] = (torch.arange(weight.numel()) < left).reshape(weight.shape)
        weights[name] = torch.where(weight == 0, 0.01, weight) * masks[name]
        left -= int(masks[name].sum())
    return replace(state.with_weights(weights), masks=masks, optimizer={})


MERGE_RULES: tuple[Callable[[MergeCase], None], ...] = (
    is_well_formed,
    keeps_its_options,
    soups_are_whole,
    zeros_stay,
    shares_sum_up,
    ingredients_are_replicas,
    sees_no_test_images,
    leaves_its_inputs_alone,
    merges_repeatably,
    equal_candidates_agree,
    one_candidate_comes_back,
    integers_are_not_averaged,
    handles_any_scores,
    works_at_the_extremes,
    ends_well,
)
