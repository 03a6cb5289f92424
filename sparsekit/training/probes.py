"""What plugins can find out: the network and its images, dense gradients, the held-out loss, Fisher information."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sparsekit._types import Tensors
from sparsekit.api import Probe, Stage, TrainingStep
from sparsekit.errors import RunError
from sparsekit.models.state import State, effective
from sparsekit.seeds import derive
from sparsekit.training.setup import Setup

LOSS_IMAGES = 1_000
_FISHER_BATCH = 32


def probe(setup: Setup, state: State, log: Callable[[str, float | str], None]) -> Probe:
    """What a step offers of a state's network and of the data."""
    return Probe(
        buffers=frozenset(dict(setup.model.named_buffers())),
        model=lambda tensors=None: network(setup, state.renamed({**state.named(), **(tensors or {})})),
        images=partial(images, setup),
        criterion=partial(criterion, setup),
        log=log,
    )


def network(setup: Setup, state: State) -> nn.Module:
    """A new copy of the network with a state's effective weights, in evaluation mode."""
    made = copy.deepcopy(setup.model).eval()
    made.load_state_dict(effective(setup.method, state).tensors)
    return made


def images(setup: Setup, split: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs and targets without augmentation; raises ValueError for any split but these two."""
    if split == "train":
        return iter(setup.data.evaluation_batches("train", limit=limit))
    if split == "held_out":
        return iter(setup.data.evaluation_batches("held_out", limit=limit))
    raise ValueError(f"images({split!r}): give 'train' or 'held_out'")


def criterion(setup: Setup, outputs: Tensor, targets: Tensor) -> Tensor:
    """The task's mean loss of a batch, as it is scored."""
    return setup.task.loss(outputs.float(), targets)


def notes(kind: str, plugin: object, row: dict[str, float | str]) -> Callable[[str, float | str], None]:
    """A `Probe.log` that puts what a plugin tells into a row, as `KIND.NAME`; raises RunError for what has no place."""

    def log(name: str, value: float | str) -> None:
        told = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if not isinstance(told, (int, float, str)) or (isinstance(told, float) and not math.isfinite(told)):
            raise RunError(
                f"{kind} {type(plugin).__name__}: log({name!r}) got {value!r}; give a finite number or a text"
            )
        row[f"{kind}.{name}"] = told

    return log


def gradients(setup: Setup, state: State, stage: Stage, batches: int = 1) -> Tensors:
    """Mean gradient of the training loss over augmented batches with respect to the effective weights; CPU tensors.

    Masked weights get a gradient too. BatchNorm normalises by the batch, as in training; its running statistics do not
    change. With `--precision fp16` gradients are computed in fp32, as small ones would underflow without a loss scaler.
    """
    setup.install(state)
    model = setup.model.train()
    weights = {name: model.get_parameter(name).detach().requires_grad_() for name in setup.prunable}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    seed = derive(setup.config.seed, "gradients", stage.index)
    torch.manual_seed(seed)
    for images, labels in setup.data.train_batches(seed, batches):
        with setup.autocast() if setup.dtype != torch.float16 else nullcontext():
            logits = functional_call(model, {**weights, **buffers}, (images,))
        loss = setup.loss(logits, labels, images)
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient / batches
    return {name: tensor.cpu() for name, tensor in total.items()}


def held_out_loss(setup: Setup, state: State, named: Tensors) -> Tensor:
    """The mean loss on up to 1,000 held-out examples, in evaluation mode, differentiable in the `named` tensors."""
    tensors = _forward_tensors(setup, state.renamed(named))
    model = setup.model.eval()
    total, count = torch.zeros((), device=setup.device), min(LOSS_IMAGES, setup.data.held_out_size)
    for inputs, targets in setup.data.evaluation_batches("held_out", limit=LOSS_IMAGES):
        outputs = functional_call(model, tensors, (inputs,))
        total = total + setup.task.loss(outputs.float(), targets) * (len(targets) / count)
    return total


def fisher(setup: Setup, state: State, images: int) -> Tensors:
    """The diagonal of the empirical Fisher information: the mean over images of the squared gradient of the loss.

    With respect to the parameters and the method's extra tensors as they are stored, in evaluation mode, over `images`
    training images without augmentation (arXiv 2111.09832, section 3). CPU tensors.
    """
    named = {name: tensor.to(setup.device) for name, tensor in state.named().items()}
    buffers = {name for name, _ in setup.model.named_buffers()}
    free = {name: t for name, t in named.items() if name not in buffers and t.is_floating_point()}
    fixed = {name: t for name, t in named.items() if name not in free}
    model = setup.model.eval()

    def loss(parameters: Tensors, image: Tensor, label: Tensor) -> Tensor:
        tensors = _forward_tensors(setup, state.renamed({**fixed, **parameters}))
        return setup.task.loss(functional_call(model, tensors, (image[None],)).float(), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(tensor) for name, tensor in free.items()}
    count = 0
    for batch, labels in setup.data.evaluation_batches("train", limit=images):
        for start in range(0, len(labels), _FISHER_BATCH):
            part = slice(start, start + _FISHER_BATCH)
            for name, gradient in each(free, batch[part], labels[part]).items():
                total[name] += gradient.square().sum(0)
        count += len(labels)
    return {name: (tensor / count).cpu() for name, tensor in total.items()}


def _forward_tensors(setup: Setup, state: State) -> Tensors:
    """Tensors on the device for `functional_call`, with the effective weights, differentiable."""
    tensors = {name: tensor.to(setup.device) for name, tensor in state.tensors.items()}
    masks = {name: mask.to(setup.device).to(tensors[name].dtype) for name, mask in state.masks.items()}
    extra = {name: tensor.to(setup.device) for name, tensor in state.extra.items()}
    weights = {name: tensors[name] for name in masks}
    step = TrainingStep(weights, masks, extra, state.progress, state.target)
    beside = {name: tensors[name] * mask.to(setup.device) for name, mask in state.beside.items()}
    return {**tensors, **setup.method.effective(step), **beside}
