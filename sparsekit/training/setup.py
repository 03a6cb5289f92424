"""The setup of a run: its plan, data, model and device, with the loss, scores and BatchNorm recalibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsekit._types import Tensors
from sparsekit.api import PruningMethod, Score, Task
from sparsekit.config.options import FitConfig
from sparsekit.data import LoadedData, Split
from sparsekit.evaluation.batchnorm import RECALIBRATION_IMAGES, batchnorm_layers, recalibrate_batchnorm
from sparsekit.evaluation.scores import score_model
from sparsekit.models.device import autocast
from sparsekit.models.state import State, cpu_state_dict, effective, has_dense_weights, masked
from sparsekit.planning.plan import PlannedSegment
from sparsekit.planning.replicas import Replica
from sparsekit.pruning.channels import Channels
from sparsekit.training.team import Team

Forward = Callable[[nn.Module, Tensors, Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """The options, plan, data and model of a run.

    Attributes:
        config: The options.
        plan: The segments, each with its replicas and steps.
        data: The data set; its batches are on the device.
        model: The working copy of the model, on the device; replicas and scores load their weights into it in turn.
        prunable: Parameter names of the prunable weights.
        device: Where the model and the data are.
        dtype: The type of autocast; float32 means no autocast.
        compiled: The compiled forward pass of training, with `--compile`.
        team: The ranks that train the same replicas as this one.
        channels: The channels that can be removed, with `--masks.pattern channels`; None otherwise.
        initial: Masks of the weights that `--model.init` gave, True keeps; empty without it.
        teacher: The model given by `--distill`, on the device, in evaluation mode; it takes the data's batches.
        notes: Lines for the user about images and classes as a model's config.json says, files of weights, and which
            weights are pruned.
        warnings: Lines about weights that may not be treated as the user expects.
    """

    config: FitConfig
    plan: tuple[PlannedSegment, ...]
    data: LoadedData
    model: nn.Module
    prunable: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    compiled: Forward | None = None
    team: Team = field(default_factory=Team)
    channels: Channels | None = None
    initial: Tensors = field(default_factory=dict)
    teacher: nn.Module | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def method(self) -> PruningMethod:
        """The pruning method."""
        return self.config.method

    @property
    def task(self) -> Task:
        """What the model is trained for."""
        return self.config.task

    def for_replica(self, replica: Replica) -> Setup:
        """The setup as a replica sees it in training: with its method, its label smoothing and its augmentation."""
        data, method = self.data.at_strength(replica.augment), replica.method or self.method
        if (data, method, replica.label_smoothing) == (self.data, self.method, self.config.label_smoothing):
            return self
        config = replace(self.config, method=method, label_smoothing=replica.label_smoothing)
        return replace(self, config=config, data=data)

    def autocast(self) -> torch.autocast:
        """A new autocast context; does nothing in fp32."""
        return autocast(self.device, self.dtype)

    def forward(self, model: nn.Module, weights: Tensors, images: Tensor) -> Tensor:
        """Outputs of a model in training, with `weights` replacing its own of the same names."""
        return (self.compiled or forward)(model, weights, images)

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """The training loss of a batch: the task's, mixed with that against the teacher's outputs if there is one.

        Args:
            outputs: The model's outputs.
            targets: The batch's targets.
            inputs: The batch, for the teacher.
        """
        outputs, smoothing = outputs.float(), self.config.label_smoothing
        own = self.task.smoothed_loss(outputs, targets, smoothing) if smoothing else self.task.loss(outputs, targets)
        if self.teacher is None:
            return own
        with torch.no_grad(), self.autocast():
            known = self.teacher(inputs)
        soft = self.task.distillation(outputs, known.float(), self.config.distill.temperature)
        return (1.0 - self.config.distill.weight) * own + self.config.distill.weight * soft

    def install(self, state: State) -> None:
        """Put a state's effective weights into the working model."""
        if has_dense_weights(self.method):
            self.model.load_state_dict(effective(self.method, state).tensors)
            return
        self.model.load_state_dict(state.tensors)
        with torch.no_grad():
            for name, mask in state.all_masks.items():  # one after another: no second copy of the model
                self.model.get_parameter(name).copy_(masked(state.tensors[name], mask))

    def score(self, state: State, split: Split) -> Score:
        """The score of a state on `held_out` or `test`, with its own BatchNorm statistics."""
        self.install(state)
        return score_model(self.model, self.data.evaluation_batches(split), self.autocast(), self.task)

    def recalibrated(self, state: State) -> State:
        """The state with BatchNorm statistics measured again on up to 10,000 training images without augmentation.

        Returns the state unchanged if `--replicas.batchnorm` is `average` or the model has no BatchNorm.
        """
        if self.config.replicas.batchnorm == "average" or not batchnorm_layers(self.model):
            return state
        self.install(state)
        batches = self.data.evaluation_batches("train", limit=RECALIBRATION_IMAGES)
        recalibrate_batchnorm(self.model, batches, self.autocast())
        buffers = {name for name, _ in self.model.named_buffers()}
        measured = {name: t for name, t in cpu_state_dict(self.model).items() if name in buffers}
        return replace(state, tensors={**state.tensors, **measured})


def forward(model: nn.Module, weights: Tensors, images: Tensor) -> Tensor:
    """Outputs of a model, with `weights` replacing its own of the same names."""
    if not weights:
        return model(images)  # type: ignore[no-any-return]
    return functional_call(model, weights, (images,))  # type: ignore[no-any-return]


def loss_fault(loss: Any) -> str:
    """Why a loss cannot train a model, with the fix, as the rest of a sentence; empty if it can."""
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.dim() else _kind(loss)
        return f"must be one floating-point number as a tensor, not {what}; give what torch makes of the outputs"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return "has no gradient; make it of the outputs by torch alone, without detach, item or no_grad"
    return ""


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
