"""Diagnostics of a merge: how the soup compares with its candidates, their ensemble, and how far apart they are.

Candidates are streamed: in memory is one candidate's model at a time, or up to 32 MB of rows of one tensor of twelve
candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sparsekit.api import Score
from sparsekit.data import Split
from sparsekit.evaluation.scores import predict_outputs
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.merging.gain import gain
from sparsekit.models.state import State
from sparsekit.training.setup import Setup

SMALL = 4_000_000
"""Values of a tensor, over all candidates, that may be in memory at once."""
_BLOCK = 1 << 14
"""Values of each vector that are multiplied at once on a CPU."""
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
        `candidates.loss` (a list), `candidates.mean_accuracy`, `.best_accuracy`, `.mean_loss`, `.best_loss`: held out,
        where `accuracy` is the name of the task's score.
        `soup.lost`: whether the soup's score is more than `soup.margin` below the best candidate's.
        `ensemble.accuracy`, `ensemble.loss`: held out, of the candidates as an ensemble.
        `ensemble.test_accuracy`, `ensemble.test_loss`: on the test split, at the last merge only.
        `gain.accuracy`, `gain.loss`, each also with `.low` and `.high`: there too, what the soup has over the
        candidates' mean, with a 95 % interval over examples, as far as the task has measures of single examples.
        `distance.min`, `.mean`, `.max`: L2 distances of pairs, over all parameters.
        `angle.min`, `.mean`, `.max`: angles between the weights of pairs, in degrees.
        `turn.min`, `.mean`, `.max`: angles between the changes of pairs since the parent, in degrees.
        `barycentre` (a list), `barycentre.mean`: L2 distances of the candidates from their mean.
    """
    if len(candidates) < 2:
        return {}
    scores = [candidate.score for candidate in candidates]
    values, losses = [s.value for s in scores], [s.loss for s in scores]
    name = setup.task.score_name
    margin = setup.config.evaluation.margin
    row: dict[str, Any] = {
        "candidates.loss": losses,
        f"candidates.mean_{name}": sum(values) / len(scores),
        f"candidates.best_{name}": max(values),
        "candidates.mean_loss": sum(losses) / len(scores),
        "candidates.best_loss": min(losses),
        "soup.margin": margin,
        "soup.lost": has_lost(soup.value, values, margin),
    }
    if setup.config.evaluation.diagnostics:
        names = [name for name, _ in setup.model.named_parameters()]
        score = ensemble(setup, merged, candidates, "held_out")
        row |= {f"ensemble.{name}": score.value, "ensemble.loss": score.loss}
        if all(candidate.tested for candidate in candidates):
            each: list[Mapping[str, Tensor]] = []
            score = ensemble(setup, merged, candidates, "test", each)
            row |= {f"ensemble.test_{name}": score.value, "ensemble.test_loss": score.loss}
            row |= gain(setup.task.per_example(*_outputs(setup, merged, "test")), each, setup.config.seed)
        row |= geometry(candidates, parent, names, setup.device)
    return row


def has_lost(soup: float, candidates: Sequence[float], margin: float) -> bool:
    """Whether a soup's score is more than `margin` below its best candidate's."""
    return soup < max(candidates) - margin - 1e-12  # the tolerance, so that exactly the margin does not count


@torch.no_grad()
def ensemble(
    setup: Setup,
    like: State,
    candidates: Sequence[FileCandidate],
    split: Split,
    each: list[Mapping[str, Tensor]] | None = None,
) -> Score:
    """Score the candidates as an ensemble on a split; they are loaded one at a time.

    `each` gets the measures of single examples, of one candidate after another.
    """
    targets = torch.empty(0)

    def members() -> Iterator[Tensor]:
        nonlocal targets
        for candidate in candidates:
            outputs, targets = _outputs(setup, like.renamed(read_tensors(candidate)), split)
            if each is not None:
                each.append(setup.task.per_example(outputs, targets))
            yield outputs

    mean = setup.task.mean_outputs(members())
    meter = setup.task.meter(mean.device)
    meter.update(mean, targets)
    loss = float(setup.task.loss(mean, targets))
    return Score(float(meter.compute()[setup.task.score_name]), loss if math.isfinite(loss) else math.inf)


def _outputs(setup: Setup, state: State, split: Split) -> tuple[Tensor, Tensor]:
    """A model's outputs for all examples of a split, float64, and their targets, in one reading."""
    setup.install(state)
    outputs, targets = [], []
    for inputs, some in setup.data.evaluation_batches(split):
        outputs.append(predict_outputs(setup.model, inputs, setup.autocast()).double())
        targets.append(some)
    return torch.cat(outputs), torch.cat(targets)


def geometry(
    candidates: Sequence[FileCandidate], parent: State, names: Sequence[str], device: torch.device | None = None
) -> dict[str, Any]:
    """Distances, angles, turns and barycentre distances over the named parameters, computed in float64 on the device.

    Args:
        candidates: Two or more candidates.
        parent: The model that they started from.
        names: The parameters to measure.
        device: Where to compute; the CPU without one.

    Returns:
        The entries `distance.*`, `angle.*`, `turn.*` and `barycentre*` of the `merge` row.
    """
    count = len(candidates)
    chosen = [i * count // MOST for i in range(MOST)] if count > MOST else list(range(count))  # evenly spread
    # rows: the first candidate's change since the parent, the first candidate, and the others' differences from it,
    # which are 0 to the bit where two candidates are one
    gram = torch.zeros(len(chosen) + 1, len(chosen) + 1, dtype=torch.float64, device=device)
    centre = [0.0] * count
    for name in names:
        start = parent.tensors[name]
        for rows in _blocks(start, len(chosen) + 1):
            own = [_read(candidates[i], name, rows) for i in chosen]
            for vectors in _in_float64([_part(start, rows), *own], gram.device):
                vectors[0].sub_(vectors[1]).neg_()
                vectors[2:] -= vectors[1]
                gram += _products(vectors)
            del own
            if count > MOST:
                mean = _read(candidates[0], name, rows).double()
                for candidate in candidates[1:]:
                    mean += _read(candidate, name, rows)
                mean /= count
                for i, candidate in enumerate(candidates):
                    centre[i] += float((_read(candidate, name, rows) - mean).square().sum())
    gram = gram.cpu()
    between = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)  # products of differences from the first
    between[1:, 1:] = gram[2:, 2:]
    weights, changes = (_shifted(between, gram, row) for row in (1, 0))
    apart = between.diag()[:, None] + between.diag() - 2.0 * between
    if count <= MOST:
        mean = between.mean(0)
        centre = (between.diag() - 2.0 * mean + mean.mean()).clamp(min=0.0).tolist()
    pairs = list(combinations(range(len(chosen)), 2))
    barycentre = [math.sqrt(value) for value in centre]
    return (
        _spread("distance", [math.sqrt(max(0.0, float(apart[i, j]))) for i, j in pairs])
        | _spread("angle", [_degrees(weights, i, j) for i, j in pairs])
        | _spread("turn", [_degrees(changes, i, j) for i, j in pairs])
        | {"barycentre": barycentre, "barycentre.mean": sum(barycentre) / len(barycentre)}
    )


def _blocks(tensor: Tensor, copies: int) -> Iterator[slice | None]:
    """Blocks of rows of which so many copies are small; None for a tensor without rows."""
    if tensor.dim() == 0:
        yield None
        return
    each = max(1, SMALL // max(1, copies * tensor[0].numel())) if len(tensor) else 1
    for first in range(0, len(tensor), each):
        yield slice(first, first + each)


def _read(candidate: FileCandidate, name: str, rows: slice | None) -> Tensor:
    """Rows of a candidate's tensor as a vector."""
    return (candidate.read(name) if rows is None else candidate.read_rows(name, rows)).flatten()


def _part(tensor: Tensor, rows: slice | None) -> Tensor:
    return (tensor if rows is None else tensor[rows]).flatten()


def _in_float64(vectors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The vectors as rows in float64 on the device, a block at a time; on a CPU a block fits its cache."""
    block = min(_BLOCK, len(vectors[0])) if device.type == "cpu" else len(vectors[0])
    memory = torch.empty(len(vectors), block, dtype=torch.float64, device=device)
    for parts in zip(*(torch.split(vector, max(block, 1)) for vector in vectors), strict=True):
        rows = memory[:, : len(parts[0])]
        for row, part in zip(rows, parts, strict=True):
            row.copy_(part)
        yield rows


def _products(rows: Tensor) -> Tensor:
    """The dot products of all pairs of rows; on a CPU by numpy, which uses that they are symmetric."""
    return torch.from_numpy(rows.numpy() @ rows.numpy().T) if rows.is_cpu else rows @ rows.T


def _shifted(between: Tensor, gram: Tensor, row: int) -> Tensor:
    """Products of the vectors that are a row of the Gram matrix plus the differences from the first candidate."""
    shift = torch.cat([torch.zeros(1, dtype=torch.float64), gram[row, 2:]])
    return between + shift[:, None] + shift + gram[row, row]


def _degrees(products: Tensor, i: int, j: int) -> float:
    """The angle between two vectors, from all dot products; 0 if one has length 0."""
    length = math.sqrt(max(0.0, float(products[i, i])) * max(0.0, float(products[j, j])))
    return math.degrees(math.acos(max(-1.0, min(1.0, float(products[i, j]) / length)))) if length else 0.0


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}.min": min(values), f"{name}.mean": sum(values) / len(values), f"{name}.max": max(values)}
