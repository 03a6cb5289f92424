"""Build a run's setup from its configuration, and have it tried out. Writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Task
from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.config.checks import check
from sparsekit.config.nm_pattern import Pattern
from sparsekit.config.options import FitConfig, describe
from sparsekit.data import LoadedData, load
from sparsekit.display.text import listed, percent
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation import cost
from sparsekit.evaluation.evaluate import check_corruptible
from sparsekit.models.card import seen_by
from sparsekit.models.create import build_model, initial_masks, initial_model, pretrained
from sparsekit.models.device import choose_device, use_precision
from sparsekit.models.fill import classifiers, fit_names, inside
from sparsekit.models.saved import SavedModel
from sparsekit.models.state import State, effective
from sparsekit.models.teacher import open_teacher
from sparsekit.planning.plan import (
    PlannedSegment,
    check_rates,
    check_steps,
    make_plan,
    make_stages,
    nothing_to_merge,
    start_from_sparsity,
    varied,
)
from sparsekit.plugins.objects import import_modules
from sparsekit.pruning import allocation, coupling, coverage, masks
from sparsekit.pruning.channels import Channels
from sparsekit.seeds import derive
from sparsekit.training.ranks import Ranks
from sparsekit.training.setup import Setup, forward
from sparsekit.training.team import Team, make_team
from sparsekit.training.trial import try_forward, try_step


def prepare(
    config: FitConfig, training: bool = True, ranks: Ranks | None = None, finished: SavedModel | None = None
) -> Setup:
    """Check the options, load data and models, and try them out.

    Args:
        config: The options.
        training: False if models are only merged and scored.
        ranks: The processes of this run, for the setup's team, which has no process group yet.
        finished: The model that is merged or scored: images and classes are as its config.json says.

    Raises:
        UserError: an option is bad or does not fit the others, the data or the model.
    """
    check(config)
    import_modules(config.imports)
    stages = make_stages(config)
    device = choose_device(config.device)
    dtype = use_precision(config.precision, device)
    if config.compile:
        _try_compile(device)
    _check_task(config)
    source = initial_model(config.model)
    data, notes = _seen(config, load(config.data, device, config.channels_last, config.task), finished, source)
    if config.evaluation.corruptions:
        check_corruptible("--evaluation.corruptions", data)
    model = build_model(config.model, data.num_classes, data.channels, derive(config.seed, "model"), source)
    source = fit_names(source, model) if source else None
    prunable = masks.prunable_names(model, config.masks.exclude)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in prunable}
    initial, more = initial_masks(source, config.model, model, prunable)
    notes += more
    channels = _channels(config, model, prunable, data) if training else None
    if channels is not None:
        notes.append(str(channels))
        whole = channels.masks(channels.kept(initial), initial) if initial else {}
        if again := masks.kept(whole) - masks.kept(initial):
            notes.append(f"{source.where if source else ''}: {again:,} zeros in no removed channel are trained again")
        initial = whole
        channels.check(config.masks.floor, config.sparsity, initial)
    if initial and channels is not None:
        fine = 10**9  # of what --sparsity counts
        stages = start_from_sparsity(stages, int((1.0 - channels.sparsity(initial)) * fine), fine)
    elif initial:
        stages = start_from_sparsity(stages, masks.kept(initial), sum(mask.numel() for mask in initial.values()))
    plan = make_plan(config, stages, data.steps_per_epoch)
    if training:
        check_rates(config, plan)
        check_steps(config, stages, data.steps_per_epoch)
    if channels is None:
        pattern = Pattern.parse(config.masks.pattern) if config.masks.pattern is not None else None
        if pattern:
            pattern.check(shapes, config.sparsity, config.masks.exclude)
        _check_floor(config.masks.floor, shapes, config.sparsity, pattern.share if pattern else 1.0, initial)
    warnings: list[str] = []
    if training:
        more, warnings = _of_weights(config, source, model, prunable, initial)
        _check_replicas(config, plan, data, {name: model.get_parameter(name).detach() for name in prunable})
        notes += more + nothing_to_merge(config, plan) + varied(config, plan)
    teacher = None
    if config.distill.model:
        teacher, more = open_teacher(config.distill.model, data)
        notes += more
    flat = all(parameter.dim() < 5 for parameter in model.parameters())  # torch has no such order for volumes
    memory = torch.channels_last if config.channels_last and flat else torch.contiguous_format
    model = model.to(device).to(memory_format=memory)
    teacher = teacher.to(device).to(memory_format=memory) if teacher else None
    if teacher and (zero := masks.empty(coverage.matrices(teacher.model))):
        warnings.append(f"--distill {config.distill.model}: {listed(zero)} holds only zeros; was the teacher trained?")
    # masks and weights are inputs of the compiled function, so that pruning does not compile it again
    compiled = torch.compile(forward) if config.compile else None
    setup = Setup(
        config, plan, data, model, tuple(prunable), device, dtype, compiled,
        channels=channels, initial=initial, teacher=teacher, notes=tuple(notes), warnings=tuple(warnings),
    )  # fmt: skip
    # oneDNN's bf16 convolution gradients are wrong on 1×1 inputs (torch 2.15, AMD avx512_bf16)
    broken = device.type == "cpu" and dtype == torch.bfloat16
    torch.backends.mkldnn.enabled = not broken  # type: ignore[assignment]
    try_forward(setup)
    if training:
        setup = replace(setup, team=_team(config, plan, ranks, device))
        try_step(setup)
    return setup


def _channels(config: FitConfig, model: nn.Module, prunable: list[str], data: LoadedData) -> Channels | None:
    """The channels of a model that can be removed, with `--masks.pattern channels`; its LayerNorms then follow them."""
    pattern = ChannelPattern.parse(config.masks.pattern)
    if pattern is None:
        return None
    images, _ = next(iter(data.evaluation_batches("held_out")))
    return coupling.prepared(model, prunable, images[:1].cpu(), pattern, config.masks.target, cost.flops)


def _check_task(config: FitConfig) -> None:
    """Raise UserError where an option asks for what the task does not have."""
    name, task = describe(config)["task"]["name"], type(config.task)
    for option, value, has in (
        ("label_smoothing", config.label_smoothing, task.smoothed_loss is not Task.smoothed_loss),
        ("distill", config.distill.model, task.distillation is not Task.distillation),
    ):
        if value and not has:
            raise UserError(f"--{option} {value}: --task {name} has no such loss; leave it out")


def _check_replicas(config: FitConfig, plan: Sequence[PlannedSegment], data: LoadedData, weights: Tensors) -> None:
    """Raise UserError where the data or the method do not allow what the replicas differ in."""
    own: Tensors | None = None
    for replica in max((segment.replicas for segment in plan), key=len):
        data.at_strength(replica.augment)
        if replica.method is None:
            continue
        own = _extra(config.method, weights) if own is None else own
        other = _extra(replica.method, weights)
        if not _same(own, other) or any(_kinds(config.method, name) != _kinds(replica.method, name) for name in own):
            why = "give the method other tensors of its own, but all replicas start from one parent"
        elif not all(
            _same(_used(config.method, weights, own, done), _used(replica.method, weights, own, done))
            for done in (0.0, 0.5, 1.0)
        ):
            why = "change the weights that the forward pass uses, but all replicas are scored and merged as one network"
        else:
            continue
        raise UserError(
            f"--replicas.vary {config.replicas.vary}: its values {why}; compare them in runs of their own "
            "(sparsekit sweep)"
        )


def _kinds(method: PruningMethod, name: str) -> tuple[bool, bool]:
    """How one of a method's own tensors is trained."""
    return method.extra_trained(name), method.extra_decays(name)


def _same(own: Tensors, other: Tensors) -> bool:
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def _used(method: PruningMethod, weights: Tensors, extra: Tensors, progress: float) -> Tensors:
    """The weights that the forward pass uses, half of them masked, at a fraction of the budget."""
    half = {name: torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0 for name, weight in weights.items()}
    return effective(method, State(weights, half, extra, progress=progress)).weights


def _extra(method: PruningMethod, weights: Tensors) -> Tensors:
    """A method's own tensors at the start; where it draws some, the same for every instance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.extra({name: weight.clone() for name, weight in weights.items()})


def _team(config: FitConfig, plan: Sequence[PlannedSegment], ranks: Ranks | None, device: torch.device) -> Team:
    """This rank's team; raises UserError if the ranks do not fit the replicas."""
    if ranks is None or ranks.size == 1:
        return Team()
    replicas = max(len(segment.replicas) for segment in plan)
    return make_team(ranks, replicas, config.data.batch_size, config.replicas.sync_batchnorm, device)


def _check_floor(
    floor: float, shapes: Mapping[str, tuple[int, ...]], sparsity: float, share: float, initial: Tensors
) -> None:
    """Raise UserError where `--masks.floor` does not suit the sparsity, or the model of `--model.init` is below it."""
    allocation.check_floor(("--masks.floor", "--sparsity"), shapes, floor, sparsity, share)
    for name, count in allocation.floors(shapes, floor, share).items() if initial else ():
        if (kept := masks.kept({name: initial[name]})) < count:
            raise UserError(
                f"--masks.floor {floor:g} asks for {count:,} weights of {name}, but --model.init keeps {kept:,}; lower "
                "the floor, or start from another model"
            )


def _of_weights(
    config: FitConfig, source: SavedModel | None, model: nn.Module, prunable: list[str], initial: Tensors
) -> tuple[list[str], list[str]]:
    """Notes and warnings about which weights are pruned, and about those that are 0 at the start."""
    covered = coverage.coverage(model, prunable)
    notes, warnings = [str(covered)], []
    if covered.small:
        warnings.append(
            f"--sparsity {config.sparsity:g} prunes {percent(covered.share * config.sparsity, 2)} of the model, "
            "most of whose weights cannot be pruned; choose another --model.name if that is too little"
        )
    if frozen := [name for name in prunable if not model.get_parameter(name).requires_grad]:
        warnings.append(f"{listed(frozen)}: pruned, but not trained (requires_grad is False); see --masks.exclude")
    weights, others = {name: model.get_parameter(name).detach() for name in prunable}, coverage.matrices(model)
    if source:
        head = classifiers(model) if config.model.new_head else ()
        left_out = [name for name in others if name not in initial and not inside(name, head)]
        more, wrong = coverage.of_zeros(source.where, weights, initial, source.masks(left_out))
        return notes + more, warnings + wrong
    zeros = sum(int((weight == 0).sum()) for weight in weights.values()) if config.model.pretrained else 0
    if zeros > 0.01 * covered.prunable:
        warnings.append(
            f"--model.pretrained: {zeros:,} of {covered.prunable:,} prunable weights are 0 and are trained again; "
            "--model.init keeps zeros"
        )
    return notes, warnings


def _seen(
    config: FitConfig, data: LoadedData, finished: SavedModel | None, source: SavedModel | None
) -> tuple[LoadedData, list[str]]:
    """The data set as a finished model sees it, or the one that gives the first weights; and lines for the user."""
    if finished is not None:
        return seen_by(finished, data, config.data)
    source = pretrained(config.model) if config.model.pretrained else source
    if source is None:
        return data, []
    seen, notes = seen_by(
        source, data, config.data, resize=False, other_classes=config.model.pretrained or config.model.new_head
    )
    if changed := data.inputs.differing(seen.inputs):
        said = f"trains with {seen.inputs.text(changed)}, as its config.json says; --data.kwargs and --data.image_size"
        notes.append(f"{source.option} {source.path} {said} change that")
    return seen, notes


def _try_compile(device: torch.device) -> None:
    """Compile one addition, for which torch needs what it needs for a model: a compiler of C or C++ that works."""
    try:
        torch.compile(lambda values: values + 1.0)(torch.ones(2, device=device))
    except Exception as error:  # torch, its backend and the compiler may raise anything
        raise UserError(
            f"--compile: torch cannot compile here: {first_line(error).rstrip('.;')}; install gcc and g++ (CC and CXX "
            "name others), or leave --compile out"
        ) from error
