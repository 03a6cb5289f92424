"""`sparsekit merge`: merge finished models, whether sparsekit trained them or not.

Tensors are read one at a time: apart from the soup, no whole model is in memory, however many are merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekit._types import Tensors
from sparsekit.api import Soup
from sparsekit.config.checks import check_floor
from sparsekit.config.options import (
    DataConfig,
    FitConfig,
    MergeConfig,
    ModelConfig,
    ReplicasConfig,
    WandbConfig,
    describe,
)
from sparsekit.data.inputs import InputConfig
from sparsekit.display.text import gap_text, listed, percent, score_text
from sparsekit.errors import RunError, UserError
from sparsekit.files import expanded, save_tensors, write_json
from sparsekit.merging.diagnostics import has_lost
from sparsekit.merging.finished_context import (
    FinishedMergeContext,
    SavedCandidate,
    check_normalisation,
    in_one_order,
)
from sparsekit.merging.merge import check_soup
from sparsekit.merging.overlap import Overlap, compare_masks, tied
from sparsekit.methods.gmp import GMP
from sparsekit.models import create, kept_norm
from sparsekit.models.card import made_as
from sparsekit.models.device import enough_memory
from sparsekit.models.fill import check_fit, fit_names
from sparsekit.models.saved import Lazy, SavedModel, architecture, open_saved_model, sizes
from sparsekit.models.state import State
from sparsekit.models.state_dict import without_wrappers
from sparsekit.plugins.registry import name_of
from sparsekit.pruning import allocation, masks
from sparsekit.training.prepare import prepare
from sparsekit.training.setup import Setup


@enough_memory("lower --data.batch_size or --data.image_size, or set --device cpu")
def merge(sources: Sequence[SavedModel], config: MergeConfig, data: DataConfig | None) -> list[tuple[str, str]]:
    """Merge finished models and write the soup to `--out`.

    Args:
        sources: The models.
        config: The options of `sparsekit merge`.
        data: The data set; None merges without data.

    Returns:
        A table for the user, as pairs of a name and a text.

    Raises:
        UserError: the options or the models do not fit; nothing was written.
        RunError: the merge strategy broke its contract, or a file could not be written.
    """
    name = name_of("merge", f"{type(config.merge).__module__}.{type(config.merge).__qualname__}")
    out = _new_directory(config.out)
    most = config.merge.max_replicas
    if most is not None and len(sources) > most:
        raise UserError(f"--merge {name} takes no more than {most} model{'s' * (most > 1)}, not {len(sources)}")
    known = _architecture(sources, config)
    parent = open_saved_model("--parent", config.parent) if config.parent else None
    setup = _setup(known, config, data) if data else None
    model = setup.model if setup else _shapes(known, config)
    every, mapped = in_one_order(_under_same_names([*sources, parent] if parent else sources, model), model)
    sources, parent = every[: len(sources)], every[-1] if parent else None
    if model:
        check_fit(model, sources[0])
    copies = {} if model else tied(sources)
    prunable = setup.prunable if setup else _prunable(model, sources[0], copies)
    overlap = compare_masks(sources, prunable)
    _check_masks(overlap, config, sources)
    if parent:
        compare_masks([sources[0], parent], ())
    context = FinishedMergeContext(setup, overlap.union, name, parent)
    candidates = [SavedCandidate(index, source, context) for index, source in enumerate(sources)]
    names = sources[0].names()
    step = context.step(config.merge, names, _buffers(model, names), config.seed)
    soup = config.merge.merge(candidates, step)
    check_soup(type(config.merge).__name__, soup, candidates, Lazy(sources[0]))
    used = [source for index, source in enumerate(sources) if index in soup.ingredients]
    check_normalisation([*used, parent] if parent else used)
    described = next((source for source in used if source.card), known[0] if known else None)
    if setup and described:
        setup = context.setup_of(described)
    tensors, kept = _apply_masks(soup.tensors, overlap.union, config)
    tensors |= {name: tensors[other].clone() for name, other in copies.items()}
    tensors |= _kept_channels(sources)
    if setup and len(soup.ingredients) > 1:
        tensors = setup.recalibrated(context.state(tensors, kept)).tensors
    masks.check(tensors, kept, "the soup")
    result = _summary(name, sources, soup, tensors, kept) | context.told
    if setup:
        result |= _scores(setup, candidates, context.state(tensors, kept))
    result |= {"run": _recorded(config, data)}
    try:
        _write(out, tensors, kept, result, described, setup)
    except OSError as error:
        raise RunError(f"{error.filename or out}: {error.strerror or error}") from error
    notes = [*(setup.notes if setup else ()), *context.notes, *(_differing(described, used) if described else ())]
    files = [source.file.resolve() for source in sources]
    twice = [f"{source.path} is given before" for i, source in enumerate(sources) if files[i] in files[:i]]
    chosen = [("model", note) for note in [*twice, *mapped, *(note for source in sources for note in source.notes)]]
    return [*chosen, *_table(result, out, overlap, setup, sources[0], notes, context.told)]


# --- before ------------------------------------------------------------------------------------------


def _new_directory(out: str | None) -> Path:
    if not out:
        raise UserError("-o must be given: the directory for the merged model")
    path = expanded(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"-o {path} exists already; give a new directory")
    return path


def _architecture(sources: Sequence[SavedModel], config: MergeConfig) -> tuple[SavedModel, ModelConfig] | None:
    """The models' architecture, and the model that it was read from; None if it is unknown.

    Raises:
        UserError: the models name different architectures.
    """
    named = [source for source in sources if source.name is not None]
    for other in named[1:]:
        if other.name != named[0].name:
            raise UserError(
                f"{named[0].path} is a {named[0].name}, {other.path} a {other.name}; give models of one kind"
            )
    if config.model.name is None and not named:
        return None
    source = named[0] if named else sources[0]
    return source, architecture(source, config.model)


def _setup(known: tuple[SavedModel, ModelConfig] | None, config: MergeConfig, data: DataConfig) -> Setup:
    """The setup for merges that use data; raises UserError if the architecture is unknown."""
    if known is None:
        raise UserError("the models do not say which architecture they are; give --model.name and --model.kwargs")
    return prepare(
        FitConfig(
            GMP(),
            config.merge,
            config.task,
            model=known[1],
            data=data,
            replicas=ReplicasConfig(batchnorm=config.batchnorm),
            wandb=WandbConfig("disabled"),
            device=config.device,
            precision="fp32",
            seed=config.seed,
        ),
        training=False,
        finished=known[0],
    )


def _shapes(known: tuple[SavedModel, ModelConfig] | None, config: MergeConfig) -> nn.Module | None:
    """The architecture's model without values; None of an unknown one."""
    if known is None:
        return None
    channels, classes = sizes(known[0], config.model)
    with torch.device("meta"):  # only shapes are needed
        return create.build_model(known[1], classes, channels, 0)


def _under_same_names(sources: Sequence[SavedModel], model: nn.Module | None) -> list[SavedModel]:
    """The models with their tensors under the architecture's names; of an unknown one, under the shortest names."""
    if model:
        return [fit_names(source, model) for source in sources]
    names = [list(source.names()) for source in sources]
    if all(set(each) == set(names[0]) for each in names):
        return [*sources]
    shortest = without_wrappers(min(names, key=lambda each: sum(map(len, each)) / len(each)))
    return [source.fitted(shortest) for source in sources]


def _prunable(model: nn.Module | None, first: SavedModel, copies: Mapping[str, str]) -> Sequence[str]:
    """Names of the Conv and Linear weights; of an unknown architecture, of all tensors `…weight` with 2+ dimensions."""
    if model:
        return masks.prunable_names(model)
    matrices = [name for name in first.names() if name.endswith("weight") and first.read(name).dim() > 1]
    return [name for name in matrices if name not in copies]


def _buffers(model: nn.Module | None, names: Sequence[str]) -> frozenset[str]:
    """Which tensors are buffers; of an unknown architecture those that are called as BatchNorm's."""
    if model:
        return frozenset(dict(model.named_buffers()))
    return frozenset(name for name in names if name.endswith(("running_mean", "running_var", "num_batches_tracked")))


def _check_masks(overlap: Overlap, config: MergeConfig, sources: Sequence[SavedModel]) -> None:
    """Raise UserError if masks differ without `--masks union`, or `--prune-again` or `--floor` does not suit them."""
    if not overlap.same and config.masks == "same":
        print(overlap.table())
        raise UserError(
            f"the zeros of {sources[0].path} and {sources[overlap.differing].path} differ in {overlap.apart:,} of "
            f"{overlap.total:,} weights; give --masks union, and --prune-again for the sparsity that is lost"
        )
    again = config.prune_again
    if again is not None and not 0.0 <= again < 1.0:
        raise UserError(f"--prune-again is {again}; give a fraction from 0 to below 1, such as 0.9")
    if again is not None and not overlap.union:
        raise UserError("--prune-again: the models have no matrix called …weight; give --model.name if timm knows it")
    sparsity = masks.sparsity(overlap.union) if overlap.union else 0.0
    if again is not None and masks.kept(overlap.union) < overlap.total - round(again * overlap.total):
        raise UserError(f"--prune-again is {again:g}, but the models are {sparsity:.2%} sparse already; give more")
    if config.floor and again is None:
        raise UserError("--floor is for --prune-again alone; give both, or neither")
    options, shapes = ("--floor", "--prune-again"), {name: mask.shape for name, mask in overlap.union.items()}
    check_floor(options, config.floor, again or 0.0)
    allocation.check_floor(options, shapes, config.floor, again or 0.0)


# --- after -------------------------------------------------------------------------------------------


def _apply_masks(tensors: Tensors, union: Tensors, config: MergeConfig) -> tuple[Tensors, Tensors]:
    """Mask the soup, pruned further for `--prune-again`; in place, as it may be large.

    Returns:
        The tensors and their masks, True keeps.
    """
    kept = union
    if config.prune_again is not None:
        scores = {name: tensors[name].abs() for name in union}
        kept = masks.select(scores, union, config.prune_again, config.allocation, floor=config.floor)
    for name, mask in kept.items():
        tensors[name].masked_fill_(~mask, 0)
    return tensors, kept


def _kept_channels(sources: Sequence[SavedModel]) -> Tensors:
    """Which channels LayerNorms count that leave removed ones out: those that one of the models keeps."""
    names = [f"{path}.{kept_norm.NAME}" for path in kept_norm.held(sources[0].names())]
    return {name: torch.stack([source.read(name) for source in sources]).any(0) for name in names}


def _summary(name: str, sources: Sequence[SavedModel], soup: Soup, tensors: Tensors, kept: Tensors) -> dict[str, Any]:
    """The entries of merge.json that need no data."""
    return {
        "merge": name,
        "models": [str(source.path) for source in sources],
        "coefficients": soup.coefficients and list(soup.coefficients),
        "ingredients": list(soup.ingredients),
        "sparsity": masks.sparsity(kept) if kept else 0.0,
        "nonzero": sum(int(torch.count_nonzero(tensors[key])) for key in kept),
        "prunable": sum(mask.numel() for mask in kept.values()),
        "layers.empty": masks.empty({name: tensors[name] for name in kept}),
    }


def _recorded(config: MergeConfig, data: DataConfig | None) -> dict[str, Any]:
    """The options that a model of a run has in config.yaml, of which evaluations and exports take theirs."""
    plain = describe(config)
    return {name: plain[name] for name in ("imports", "task", "data") if name == "imports" or data is not None}


def _scores(setup: Setup, candidates: Sequence[SavedCandidate], merged: State) -> dict[str, Any]:
    """The entries of merge.json that need data: the models' held-out scores, and the soup's."""
    scores, name = [candidate.score.value for candidate in candidates], setup.task.score_name
    held_out, test = setup.score(merged, "held_out"), setup.score(merged, "test")
    return {
        "score": name,
        "candidates": scores,
        f"held_out.{name}": held_out.value,
        "held_out.loss": held_out.loss,
        f"test.{name}": test.value,
        "test.loss": test.loss,
        "soup.lost": has_lost(held_out.value, scores, setup.config.evaluation.margin),
    }


def _write(
    out: Path,
    tensors: Tensors,
    kept: Tensors,
    result: dict[str, Any],
    described: SavedModel | None,
    setup: Setup | None,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if described and described.card:
        write_json(out / "config.json", described.card)
    elif setup:
        create.save_model(setup.model, setup.config.model, setup.data.inputs, out, setup.data.class_names)
    save_tensors(out / "model.safetensors", tensors)
    save_tensors(out / "masks.safetensors", kept)
    write_json(out / "merge.json", result)


def _differing(described: SavedModel, used: Sequence[SavedModel]) -> list[str]:
    """Lines about models whose images are made otherwise than config.json will say."""
    blank = InputConfig(described.channels or 3, (0, 0), (0.0,), (1.0,))
    own = made_as(described, blank)[0]
    lines = []
    for source in used:
        theirs = made_as(source, blank)[0] if source.card else own
        if changed := [name for name in own.differing(theirs) if name not in ("mean", "std")]:
            said = f"{theirs.text(changed)}; the soup's config.json says {own.text(changed)}"
            lines.append(f"{source.path} was trained with {said}, as {described.path}")
    return lines


def _table(
    result: dict[str, Any],
    out: Path,
    overlap: Overlap,
    setup: Setup | None,
    first: SavedModel,
    notes: Sequence[str],
    told: Mapping[str, float | str],
) -> list[tuple[str, str]]:
    """A merge's result for the user, as pairs of a name and a text."""
    count = len(result["models"])
    lines = [("soup", f"{result['merge']}: {len(result['ingredients'])} of {count} model{'s' * (count > 1)}")]
    if result["coefficients"]:
        lines.append(("weights", ", ".join(f"{value:.4g}" for value in result["coefficients"])))
    if setup:
        name, own = result["score"], result[f"held_out.{result['score']}"]
        held_out, test = (score_text(name, result[f"{split}.{name}"], 2) for split in ("held_out", "test"))
        lines.append((name, f"{held_out} held out, {test} on the test split"))
        each = result["candidates"]
        models = (
            f"{score_text(name, sum(each) / count, 2)} held out in the mean, {score_text(name, max(each), 2)} the best"
        )
        lines.append(("models", models))
        if result["soup.lost"]:
            lost = f"{gap_text(name, max(each) - own)} below the best model"
            if (before := masks.sparsity(overlap.union)) < result["sparsity"]:
                reason = f"it was pruned again, from {percent(before, 2)} sparse to {percent(result['sparsity'], 2)}"
            else:
                reason = "only models that were trained from a common one average well"
            lines.append(("lost", f"{lost}: {reason}"))
    lines += [(key, f"{value:.4g}" if isinstance(value, float) else str(value)) for key, value in told.items()]
    lines.append(("sparsity", f"{percent(result['sparsity'], 2)} of the prunable weights"))
    lines.append(("nonzero", f"{result['nonzero']:,} of {result['prunable']:,} prunable weights"))
    if empty := result["layers.empty"]:
        lines.append(("empty", f"{listed(empty)}: all weights are 0; --floor 1 keeps some under --prune-again"))
    if overlap.fresh:
        lines.append(("zeros", f"only zeros in {listed(overlap.fresh)}; without a stored mask that counts as dense"))
    if not overlap.same:
        lines.append(("masks", "they differed: what any model keeps was kept"))
    norms = any(name.endswith("running_var") for name in first.names())
    if norms and not setup and len(result["ingredients"]) > 1:
        lines.append(("BatchNorm", "its statistics are averages; give --data.name to have them measured again"))
    return [*lines, *(("images", note) for note in dict.fromkeys(notes)), ("written", str(out))]
