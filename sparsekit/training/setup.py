"""From a config to everything a run needs, checked: plan, data, model and device. Nothing is written here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Score, Stage
from sparsekit.config.checks import check
from sparsekit.config.options import FitConfig
from sparsekit.config.pattern import Pattern
from sparsekit.data import Data, Split, load
from sparsekit.errors import UserError, first_line
from sparsekit.evaluation import scores as evaluation
from sparsekit.models import create as models
from sparsekit.models import state as states
from sparsekit.planning.plan import Plan, check_steps, make_plan, make_stages, raised, segment_steps
from sparsekit.pruning import masks
from sparsekit.seeds import derive
from sparsekit.training import optimizers
from sparsekit.training.team import Team

RECALIBRATION_IMAGES = 10_000

Forward = Callable[[nn.Module, Tensors, Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """What a run works with.

    Attributes:
        config: The options.
        stages: The plan's segments, each with its place.
        plan: The same for people and plan.json.
        steps: Optimizer steps of each segment.
        data: The data set; its batches come on the device.
        model: The one working copy of the model, on the device; its weights change hands.
        prunable: Parameter names of the prunable weights.
        device: Where the model and the data are.
        dtype: What autocast computes in; float32 is no autocast.
        compiled: The forward pass of training, compiled, where `--compile` asks for it.
        team: The ranks that train the same replicas as this one.
        initial: Masks of the weights that `--model.init` gave, True keeps; empty where training starts anew.
        teacher: What `--distill` names, on the device, in evaluation mode.
    """

    config: FitConfig
    stages: tuple[Stage, ...]
    plan: Plan
    steps: tuple[int, ...]
    data: Data
    model: nn.Module
    prunable: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    compiled: Forward | None = None
    team: Team = field(default_factory=Team)
    initial: Tensors = field(default_factory=dict)
    teacher: nn.Module | None = None

    @property
    def method(self) -> PruningMethod:
        """The pruning method."""
        return self.config.method

    def autocast(self) -> torch.autocast:
        """A new autocast context; does nothing in fp32."""
        return autocast(self.device, self.dtype)

    def forward(self, model: nn.Module, weights: Tensors, images: Tensor) -> Tensor:
        """Logits of a model in training, with `weights` in the place of its own of the same names."""
        return (self.compiled or forward)(model, weights, images)

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The training loss of a batch: cross-entropy with the labels and, where there is a teacher, its soft labels.

        These count T² · KL(teacher ‖ model), both at temperature T, a mean over the batch (arXiv 1503.02531).
        """
        hard = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        if self.teacher is None:
            return hard
        with torch.no_grad(), self.autocast():
            taught = self.teacher(images)
        heat, weight = self.config.distill.temperature, self.config.distill.weight
        ours, theirs = (F.log_softmax(each.float() / heat, dim=1) for each in (logits, taught))
        soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * heat**2
        return (1.0 - weight) * hard + weight * soft

    def install(self, state: states.State) -> None:
        """Put a state's effective weights into the working model."""
        self.model.load_state_dict(states.effective(self.method, state).tensors)

    def score(self, split: Split) -> Score:
        """How the working model does on `held_out` or `test`."""
        return evaluation.evaluate(self.model, self.data.evaluation_batches(split), self.autocast())

    def recalibrate(self) -> None:
        """Measure the working model's BatchNorm statistics on up to 10,000 un-augmented training images."""
        batches = self.data.evaluation_batches("train", limit=RECALIBRATION_IMAGES)
        evaluation.recalibrate(self.model, batches, self.autocast())


def forward(model: nn.Module, weights: Tensors, images: Tensor) -> Tensor:
    """Logits of a model, with `weights` in the place of its own of the same names."""
    if not weights:
        return model(images)  # type: ignore[no-any-return]
    return functional_call(model, weights, (images,))  # type: ignore[no-any-return]


def prepare(config: FitConfig, training: bool = True) -> Setup:
    """Check everything that can be checked, and load it; raises UserError.

    Args:
        config: The options.
        training: Whether models will be trained, and not only merged and scored.
    """
    check(config)
    stages = make_stages(config)
    device = choose_device(config.device)
    dtype = choose_dtype(config.precision, device)
    data = load(config.data, device, config.channels_last)
    model = models.build(config.model, data.num_classes, data.channels, derive(config.seed, "model"))
    prunable = masks.prunable_names(model, config.masks.exclude)
    initial = source.masks(prunable) if (source := models.initial(config.model)) else {}
    if initial:
        stages = raised(stages, masks.kept(initial), sum(mask.numel() for mask in initial.values()))
    plan = make_plan(config, stages)
    steps = segment_steps(stages, data.steps_per_epoch)
    if training:
        check_steps(config, stages, data.steps_per_epoch)
    if config.masks.pattern is not None:
        shapes = {name: tuple(model.get_parameter(name).shape) for name in prunable}
        Pattern.parse(config.masks.pattern).check(shapes, config.sparsity)
    teacher = config.distill.model and models.open_teacher(config.distill.model, data.num_classes, data.channels)
    memory = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=memory)
    teacher = teacher.to(device).to(memory_format=memory) if teacher else None
    # masks and weights are inputs of what is compiled: pruning them does not compile it again
    compiled = torch.compile(forward) if config.compile else None
    setup = Setup(config, stages, plan, tuple(steps), data, model, tuple(prunable), device, dtype, compiled)
    setup = replace(setup, initial=initial, teacher=teacher)
    # oneDNN's bf16 convolution gradients are wrong on 1×1 inputs (torch 2.15, AMD avx512_bf16)
    broken = device.type == "cpu" and dtype == torch.bfloat16
    torch.backends.mkldnn.enabled = not broken  # type: ignore[assignment]
    _try_forward(setup)
    if training:
        _try_step(setup)
    return setup


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A new autocast context; does nothing in fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def choose_device(name: str) -> torch.device:
    """The device that `--device` means; raises UserError where there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one device a rank
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            fix = f"start at most {count} ranks on it" if "LOCAL_RANK" in os.environ else "use auto or cpu"
            raise UserError(f"--device {name}: this machine has {count} CUDA devices; {fix}")
        torch.cuda.set_device(device)  # what a collective means by "cuda"
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What `--precision` computes in on a device."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _try_step(setup: Setup) -> None:
    """One training step on a copy of the weights: batch size and optimizer must suit the model."""
    config, o = setup.config, setup.config.optimizer
    fresh = states.capture(setup.model)
    optimizer = optimizers.build(o, setup.model, {}, o.lr, o.weight_decay)
    images, labels = next(iter(setup.data.train_batches(0, 1)))
    setup.model.train()
    try:
        with setup.autocast():
            loss = setup.loss(setup.model(images), labels, images)
        loss.backward()  # type: ignore[no-untyped-call]
    except ValueError as error:  # BatchNorm refuses a single value a channel
        raise UserError(f"--data.batch_size {config.data.batch_size} does not suit the model: {error}") from error
    try:
        optimizer.step()
        optimizers.export(optimizer, optimizers.names_of(optimizer, setup.model, {}))
    except RuntimeError as error:
        raise UserError(
            f"--optimizer.name {o.name} cannot be used here: {first_line(error)}; choose another"
        ) from error
    setup.model.zero_grad(set_to_none=True)
    setup.model.load_state_dict(fresh)


def _try_forward(setup: Setup) -> None:
    """One small batch through the model: image size and class count must suit it."""
    images, _ = next(iter(setup.data.evaluation_batches("held_out")))
    setup.model.eval()
    try:
        with torch.no_grad(), setup.autocast():
            shape = tuple(setup.model(images[:2]).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        size, name = setup.data.image_size, models.resolve(setup.config.model)[0]
        text = first_line(error).rstrip(".;")
        raise UserError(
            f"--model.name {name} cannot take images of {size}×{size} pixels: {text}; set --data.image_size, or "
            "img_size in --model.kwargs"
        ) from error
    if shape != (2, setup.data.num_classes):
        raise UserError(f"--model.kwargs: the model answers with shape {shape}, not (2, {setup.data.num_classes})")
