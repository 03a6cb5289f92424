"""One merge of a run: combine the candidates, mask the soup, recalibrate its BatchNorm, and check the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekit._types import Tensors
from sparsekit.api import Candidate, MergeStep, Score, Soup, Stage
from sparsekit.errors import RunError
from sparsekit.merging.average import average, check_coefficients
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.models.reparametrized import all_finite
from sparsekit.models.state import OPTIMIZER, State, effective, has_dense_weights, in_use
from sparsekit.models.stored import Lazy
from sparsekit.pruning import masks
from sparsekit.seeds import derive
from sparsekit.training import probes
from sparsekit.training.setup import Setup


def merge(
    setup: Setup, parent: State, candidates: Sequence[FileCandidate], stage: Stage, row: dict[str, Any] | None = None
) -> tuple[State, Soup]:
    """Merge the candidates into the next parent.

    Args:
        setup: The run's setup.
        parent: The model that the candidates started from.
        candidates: The trained replicas.
        stage: The segment.
        row: Where the strategy's `log` writes; by default nowhere that is kept.

    Returns:
        The next parent and the soup. The optimizer state is averaged with the soup's coefficients, from the
        candidates' files when it is read; it is empty if the soup has none.

    Raises:
        RunError: the candidates' masks differ, or the soup breaks the contract.
    """
    if len({candidate.mask_digest for candidate in candidates}) > 1:
        raise RunError(f"segment {stage.index + 1}: the candidates' masks differ")

    def score(named: Tensors) -> Score:
        return setup.score(setup.recalibrated(after.renamed(named)), "held_out")

    after = replace(parent, progress=stage.end / stage.budget.epochs, optimizer={})
    names = candidates[0].names()
    step = MergeStep(
        average=lambda some, coefficients: average(some, coefficients, names, setup.device),
        score=score,
        loss=partial(probes.held_out_loss, setup, after),
        fisher=lambda candidate, images=256: probes.fisher(setup, after.renamed(read_tensors(candidate)), images),
        parent=parent.named(),
        generator=torch.Generator().manual_seed(derive(setup.config.seed, "merge", stage.index)),
        masks=parent.masks,
        stage=stage,
        **vars(probes.probe(setup, after, probes.notes("merge", setup.config.merge, {} if row is None else row))),
    )
    soup = setup.config.merge.merge(candidates, step)
    check_soup(type(setup.config.merge).__name__, soup, candidates, parent.named())
    merged = after.renamed(soup.tensors)
    if not has_dense_weights(setup.method):
        merged = effective(setup.method, merged)
    if len(soup.ingredients) > 1:
        merged = setup.recalibrated(merged)
    if soup.coefficients is not None:
        coefficients = soup.coefficients
        check_coefficients(coefficients, len(candidates))  # they are used only when a state is read

        def momentum(name: str) -> Tensor:
            return average(candidates, coefficients, [OPTIMIZER + name], setup.device)[OPTIMIZER + name]

        momenta = [name.removeprefix(OPTIMIZER) for name in candidates[0].optimizer_names()]
        merged = replace(merged, optimizer=Lazy.of(momenta, momentum))
    masks.check(in_use(setup.method, merged).tensors, merged.all_masks, f"soup of segment {stage.index + 1}")
    return merged, soup


def check_soup(name: str, soup: Soup, candidates: Sequence[Candidate], like: Mapping[str, Tensor]) -> None:
    """Raise RunError unless a merge strategy returned a valid soup.

    A valid soup has the candidates' tensors, with their shapes and types, all finite, and at least one ingredient.

    Args:
        name: The strategy.
        soup: What it returned.
        candidates: The candidates.
        like: A model with tensors like the candidates', by the names that merges see.
    """
    if not isinstance(soup, Soup):
        raise RunError(f"merge {name}: merge() must return a Soup, got {type(soup).__name__}")
    if unknown := set(soup.ingredients) - {candidate.index for candidate in candidates}:
        raise RunError(f"merge {name}: the soup names replica {min(unknown)}, which is not a candidate")
    expected = sorted(like)
    if sorted(soup.tensors) != expected:
        wrong = sorted(set(soup.tensors) ^ set(expected))
        raise RunError(f"merge {name}: the soup must have the candidates' tensors; {wrong[0]!r} is missing or too many")
    for key, tensor in soup.tensors.items():
        reference = like[key]
        if tensor.shape != reference.shape or tensor.dtype != reference.dtype:
            raise RunError(
                f"merge {name}: {key} has shape {tuple(tensor.shape)} and {tensor.dtype}, the candidates' "
                f"{tuple(reference.shape)} and {reference.dtype}"
            )
        if not all_finite(tensor):
            raise RunError(f"merge {name}: {key} of the soup is not finite")
    if not soup.ingredients:
        raise RunError(f"merge {name}: the soup names no ingredient")
