"""Build a run's setup from its configuration and try it out: one forward pass, one training step. Writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Task
from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.config.checks import check
from sparsekit.config.nm_pattern import Pattern
from sparsekit.config.options import FitConfig, describe
from sparsekit.data import ExampleData, LoadedData, Split, load
from sparsekit.data.batches import not_finite
from sparsekit.display.text import listed, percent
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation import cost
from sparsekit.evaluation.evaluate import check_corruptible
from sparsekit.evaluation.scores import plain
from sparsekit.models.card import seen_by
from sparsekit.models.create import build_model, initial_masks, initial_model, pretrained, resolve_model
from sparsekit.models.device import choose_device, lacks_memory, use_precision
from sparsekit.models.fill import classifiers, fit_names, inside
from sparsekit.models.saved import SavedModel
from sparsekit.models.state import State, cpu_state_dict, effective
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
from sparsekit.training import optimizers
from sparsekit.training.ranks import Ranks
from sparsekit.training.replica import averaged_from
from sparsekit.training.setup import Setup, forward, loss_fault
from sparsekit.training.team import Team, make_team

_USUAL = (torch.float32, torch.int64)
"""The types of inputs that most models take."""
_REFUSALS = (RuntimeError, ValueError, AssertionError)
"""What timm's models raise for images that they cannot take."""


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
    _try_forward(setup)
    if training:
        setup = replace(setup, team=_team(config, plan, ranks, device))
        _try_step(setup)
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


def _try_step(setup: Setup) -> None:
    """Take one training step to check that batch size and optimizer suit the model; the weights are put back."""
    config, o = setup.config, setup.config.optimizer
    fresh = cpu_state_dict(setup.model)
    # as much memory as a run takes beside: masks, and with a mean of the trajectory that
    averages = any(averaged_from(setup, segment.stage) is not None for segment in setup.plan)
    parameters = [setup.model.get_parameter(name) for name in setup.prunable] + averages * [*setup.model.parameters()]
    beside = [torch.empty_like(parameter) for parameter in parameters]
    if not any(parameter.requires_grad for parameter in setup.model.parameters()):
        name = resolve_model(config.model)[0]
        raise UserError(f"--model.name {name}: no parameter is trained; set requires_grad of those that shall be")
    optimizer = optimizers.build(o, setup.model, {}, o.lr, o.weight_decay)
    images, labels = next(iter(setup.data.train_batches(0, 1, part=(setup.team.member, setup.team.size))))
    setup.model.train()
    try:
        with setup.autocast():
            outputs = setup.model(images)
    except ValueError as error:  # BatchNorm refuses a single value per channel
        raise UserError(f"--data.batch_size {config.data.batch_size} does not suit the model: {error}") from error
    _try_loss(setup, outputs, labels, images).backward()  # type: ignore[no-untyped-call]
    try:
        optimizer.step()
        optimizers.exported(optimizer, optimizers.names_of(optimizer, setup.model, {}))
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        reason = first_line(error)
        raise UserError(f"--optimizer.name {o.name} cannot be used here: {reason}; choose another") from error
    del beside
    setup.model.zero_grad(set_to_none=True)
    setup.model.load_state_dict(fresh)


def _try_loss(setup: Setup, outputs: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """The training loss of a batch; raises UserError where the task gives none that trains the model."""
    if not outputs.requires_grad:
        name = resolve_model(setup.config.model)[0]
        raise UserError(
            f"--model.name {name}: its outputs have no gradient; set requires_grad of what is to be trained"
        )
    told = describe(setup.config)["task"]["name"]
    try:
        with setup.autocast():
            loss = setup.loss(outputs, labels, images)
    except Exception as error:  # a plugin may raise anything
        if lacks_memory(error):
            raise
        raise UserError(
            f"--task {told}: its loss raises {type(error).__name__}: {first_line(error).rstrip('.;')}; correct it"
        ) from error
    if fault := loss_fault(loss):
        raise UserError(f"--task {told}: its loss {fault}")
    return loss


def _try_forward(setup: Setup) -> None:
    """Run one batch through model, task and teacher to check that inputs and outputs suit them.

    Two examples on a CPU, a whole batch where it may not fit into the device's memory. A user's own test examples may
    differ from those that are held out, so they are tried, too.
    """
    if setup.data.fixed:
        _try_split(setup, "test")
    inputs = _try_split(setup, "held_out", "train")
    if setup.teacher is not None:
        try:
            with torch.no_grad(), setup.autocast():
                setup.teacher(inputs)
        except (RuntimeError, ValueError, AssertionError) as error:
            if lacks_memory(error):
                raise
            text = first_line(error).rstrip(".;")
            raise UserError(
                f"--distill {setup.config.distill.model}: the teacher cannot take these images: {text}; correct "
                "input_size in its config.json, or set --data.image_size"
            ) from error


def _try_split(setup: Setup, *splits: Split) -> Tensor:
    """Run a batch of the first split through model and task; returns its inputs.

    All targets of the splits are held against the task where they lie in memory.
    """
    inputs, targets = next(iter(setup.data.evaluation_batches(splits[0])))
    if setup.device.type != "cuda":
        inputs, targets = inputs[:2], targets[:2]
    setup.model.eval()
    name = resolve_model(setup.config.model)[0]
    try:
        with torch.no_grad(), setup.autocast():
            outputs = setup.model(inputs)
    except Exception as error:  # a user's model may raise anything
        if lacks_memory(error) or (not setup.data.fixed and not isinstance(error, _REFUSALS)):
            raise
        text = first_line(error).rstrip(".;")
        if setup.data.fixed:
            shape = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
            fix = "change the model or the data" if inputs.dtype in _USUAL else "convert them, as to torch.float32"
            raise UserError(f"--model.name {name} cannot take inputs {shape}: {text}; {fix}") from error
        raise UserError(
            f"--model.name {name} cannot take images of {setup.data.inputs.pixels} pixels: {text}; set "
            "--data.image_size, or img_size in --model.kwargs"
        ) from error
    _try_task(setup, name, outputs, targets, splits)
    return inputs


def _try_task(setup: Setup, name: str, outputs: Tensor, targets: Tensor, splits: Sequence[Split]) -> None:
    """Check that a model's outputs are those that the task needs, and that its loss and meter take them."""
    task, told = setup.task, describe(setup.config)["task"]["name"]
    if not isinstance(outputs, Tensor):
        raise UserError(f"--model.name {name} gives {type(outputs).__name__}; its outputs must be one tensor")
    about = f"outputs of shape {tuple(outputs.shape)} and targets {targets.dtype} of shape {tuple(targets.shape)}"
    try:
        task.check(outputs, targets)
        if task.stratified and outputs.shape[1] != setup.data.num_classes:
            raise ValueError(f"there are {setup.data.num_classes} classes")
        loss = task.loss(outputs.float(), targets)
        meter = task.meter(outputs.device)
        meter.update(outputs.double(), targets)
        found = meter.compute()
        if (constant := task.constant_outputs(targets)) is not None:
            task.loss(constant.expand(len(targets), *constant.shape), targets)
        for every in map(setup.data.known_targets, splits) if isinstance(setup.data, ExampleData) else ():
            if every is not None:
                task.check(outputs[:1].cpu().expand(len(every), *outputs.shape[1:]), every)
    except Exception as error:  # a plugin may raise anything
        if lacks_memory(error):
            raise
        raise UserError(
            f"--task {told}: {about} do not suit it: {first_line(error).rstrip('.;')}; change the model or the targets"
        ) from error
    with torch.no_grad():
        if fault := loss_fault(loss):
            raise UserError(f"--task {told}: its loss {fault}")
    if not isinstance(found, Mapping):
        raise UserError(
            f"--task {told}: its meter's compute() gives {type(found).__name__}; give measures by name, with "
            f"{task.score_name!r} among them"
        )
    if not isinstance(plain(found.get(task.score_name)), (int, float)):
        raise UserError(f"--task {told}: its meter measures {', '.join(found)}, not its score {task.score_name!r}")
    if isinstance(setup.data, ExampleData):
        for split in splits:
            _check_targets(setup.data, task, outputs, split)


def _check_targets(data: ExampleData, task: Task, outputs: Tensor, split: Split) -> None:
    """Raise UserError where a target that lies in memory is not finite, and the task's loss of it is not either."""
    targets = data.known_targets(split)
    if targets is None or not (odd := not_finite(targets)):
        return
    sound = sorted({*range(len(targets))} - {*odd})
    some = targets[[*odd[:1], *sound[:1]]]  # beside a sound one, as a task may leave out what is not known
    loss = task.loss(outputs[:1].float().cpu().expand(len(some), *outputs.shape[1:]), some)
    if not bool(loss.isfinite()):
        raise UserError(data.not_finite_at(split, odd[0]))
