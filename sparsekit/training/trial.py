"""Try a prepared setup out before it trains: one forward pass, one training step, the task's loss and meter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsekit.api import Task
from sparsekit.config.options import describe
from sparsekit.data import ExampleData, Split
from sparsekit.data.batches import not_finite
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation.scores import plain
from sparsekit.models.create import resolve_model
from sparsekit.models.device import lacks_memory
from sparsekit.models.state import cpu_state_dict
from sparsekit.training import optimizers
from sparsekit.training.replica import averaged_from
from sparsekit.training.setup import Setup, loss_fault

_USUAL = (torch.float32, torch.int64)
"""The types of inputs that most models take."""
_REFUSALS = (RuntimeError, ValueError, AssertionError)
"""What timm's models raise for images that they cannot take."""


def try_step(setup: Setup) -> None:
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


def try_forward(setup: Setup) -> None:
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
