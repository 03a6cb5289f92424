"""Diagnostics of a merge: how the soup compares with its candidates, their ensemble, and how far apart they are.

Candidates are streamed: in memory is one candidate's model at a time, or two candidates' copies of one tensor (all
candidates' copies if they take less than 32 MB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.api import Score
from sparsekit.data import Split
from sparsekit.evaluation.scores import predict_logits
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.models.state import State
from sparsekit.training.setup import Setup

SMALL = 4_000_000
"""Values of a tensor, over all candidates, that may be in memory at once."""
MOST = 12
"""Pairs are measured among at most this many candidates, as their number grows with the square."""


def of_merge(
    setup: Setup, parent: State, merged: State, candidates: Sequence[FileCandidate], soup: Score
) -> dict[str, Any]:
    """Values for the `merge` row of metrics.jsonl; empty for a single candidate.

    Args:
        setup: The run's setup; its working model ends up with the weights of some candidate.
        parent: The model that the candidates started from.
        merged: The soup; candidates differ from it in their tensors only.
        candidates: All candidates, including those not used.
        soup: Held-out score of the soup.

    Returns:
        `candidates.loss` (a list), `candidates.mean_accuracy`, `.best_accuracy`, `.mean_loss`, `.best_loss`: held out.
        `soup.lost`: whether the soup's accuracy is more than `soup.margin` below the best candidate's.
        `ensemble.accuracy`, `ensemble.loss`: held out, of the candidates' mean probabilities.
        `ensemble.test_accuracy`, `ensemble.test_loss`: on the test split, at the last merge only.
        `distance.min`, `.mean`, `.max`: L2 distances of pairs, over all parameters.
        `angle.min`, `.mean`, `.max`: angles between the weights of pairs, in degrees.
        `turn.min`, `.mean`, `.max`: angles between the changes of pairs since the parent, in degrees.
        `barycentre` (a list), `barycentre.mean`: L2 distances of the candidates from their mean.
    """
    if len(candidates) < 2:
        return {}
    scores = [candidate.score for candidate in candidates]
    accuracies, losses = [s.accuracy for s in scores], [s.loss for s in scores]
    margin = setup.config.evaluation.margin
    row: dict[str, Any] = {
        "candidates.loss": losses,
        "candidates.mean_accuracy": sum(accuracies) / len(scores),
        "candidates.best_accuracy": max(accuracies),
        "candidates.mean_loss": sum(losses) / len(scores),
        "candidates.best_loss": min(losses),
        "soup.margin": margin,
        "soup.lost": has_lost(soup.accuracy, accuracies, margin),
    }
    if setup.config.evaluation.diagnostics:
        names = [name for name, _ in setup.model.named_parameters()]
        score = ensemble(setup, merged, candidates, "held_out")
        row |= {"ensemble.accuracy": score.accuracy, "ensemble.loss": score.loss}
        if all(candidate.tested for candidate in candidates):
            score = ensemble(setup, merged, candidates, "test")
            row |= {"ensemble.test_accuracy": score.accuracy, "ensemble.test_loss": score.loss}
        row |= geometry(candidates, parent, names)
    return row


def has_lost(soup: float, candidates: Sequence[float], margin: float) -> bool:
    """Whether a soup's accuracy is more than `margin` below its best candidate's; accuracies from 0 to 1."""
    return soup < max(candidates) - margin - 1e-12  # the tolerance, so that exactly the margin does not count


@torch.no_grad()
def ensemble(setup: Setup, like: State, candidates: Sequence[FileCandidate], split: Split) -> Score:
    """Score the mean of the candidates' probabilities on a split; candidates are loaded one at a time."""
    total: Tensor | None = None
    for candidate in candidates:
        setup.install(like.renamed(read_tensors(candidate)))
        p = torch.cat([_probabilities(setup, images) for images, _ in setup.data.evaluation_batches(split)])
        total = p if total is None else total.add_(p)
    assert total is not None
    mean = total / len(candidates)
    labels = torch.cat([labels for _, labels in setup.data.evaluation_batches(split)])
    loss = float(F.nll_loss(mean.log(), labels))
    hits = int((mean.argmax(1) == labels).sum())
    return Score(hits / len(labels), loss if math.isfinite(loss) else math.inf)


def _probabilities(setup: Setup, images: Tensor) -> Tensor:
    return predict_logits(setup.model, images, setup.autocast()).double().softmax(1)


def geometry(candidates: Sequence[FileCandidate], parent: State, names: Sequence[str]) -> dict[str, Any]:
    """Distances, angles, turns and barycentre distances over the named parameters, computed in float64.

    Args:
        candidates: Two or more candidates.
        parent: The model that they started from.
        names: The parameters to measure.

    Returns:
        The entries `distance.*`, `angle.*`, `turn.*` and `barycentre*` of the `merge` row.
    """
    chosen = list(range(len(candidates)))
    if len(chosen) > MOST:  # evenly spread
        chosen = [i * len(candidates) // MOST for i in range(MOST)]
    pairs = list(combinations(chosen, 2))
    squares, products, turned = ([0.0] * len(pairs) for _ in range(3))
    norms, changes, centre = ([0.0] * len(candidates) for _ in range(3))
    for name in names:
        start = parent.tensors[name].double().flatten()
        vector = _reader(candidates, name, start.numel())
        mean = vector(0).clone()
        for i in range(1, len(candidates)):
            mean += vector(i)
        mean /= len(candidates)
        for i in range(len(candidates)):
            w = vector(i)
            norms[i] += float(w @ w)
            changes[i] += float((w - start).square().sum())
            centre[i] += float((w - mean).square().sum())
            del w
        del mean
        for k, (i, j) in enumerate(pairs):
            a, b = vector(i), vector(j)
            squares[k] += float((a - b).square().sum())
            products[k] += float(a @ b)
            turned[k] += float((a - start) @ (b - start))
            del a, b
    angles = [_degrees(products[k], norms[i], norms[j]) for k, (i, j) in enumerate(pairs)]
    turns = [_degrees(turned[k], changes[i], changes[j]) for k, (i, j) in enumerate(pairs)]
    barycentre = [math.sqrt(value) for value in centre]
    return (
        _spread("distance", [math.sqrt(value) for value in squares])
        | _spread("angle", angles)
        | _spread("turn", turns)
        | {"barycentre": barycentre, "barycentre.mean": sum(barycentre) / len(barycentre)}
    )


def _reader(candidates: Sequence[FileCandidate], name: str, size: int) -> Callable[[int], Tensor]:
    """A function from a candidate's index to its tensor as a float64 vector, cached in memory if all are small."""
    if size * len(candidates) > SMALL:
        return lambda i: candidates[i].read(name).double().flatten()
    return [candidate.read(name).double().flatten() for candidate in candidates].__getitem__


def _degrees(product: float, left: float, right: float) -> float:
    """The angle between two vectors, from their dot product and squared lengths; 0 if one has length 0."""
    length = math.sqrt(left * right)
    return math.degrees(math.acos(max(-1.0, min(1.0, product / length)))) if length else 0.0


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}.min": min(values), f"{name}.mean": sum(values) / len(values), f"{name}.max": max(values)}
