"""`sparsekit.Pruner`: the plan, the pruning and the masks of a run, in somebody else's training loop."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekit._types import Tensors
from sparsekit.api import MergeStrategy, Probe, PruningMethod, Segment, Stage
from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.config.nm_pattern import Pattern
from sparsekit.config.options import FitConfig
from sparsekit.errors import RunError, UserError
from sparsekit.evaluation import cost
from sparsekit.merging.state_dicts import Fisher, Lossy, Scorer, soup
from sparsekit.models import slim
from sparsekit.models.state import State, cpu_state_dict, has_dense_weights
from sparsekit.planning.plan import check_steps, make_plan, make_stages
from sparsekit.plugins.objects import brought
from sparsekit.pruning import allocation, coupling
from sparsekit.pruning import masks as zeros
from sparsekit.pruning.channels import Channels
from sparsekit.pruning.prune import prune
from sparsekit.python.options import keyword_names, read
from sparsekit.seeds import derive
from sparsekit.training.masking import Masking
from sparsekit.training.probes import notes
from sparsekit.training.setup import loss_fault

Loss = Callable[[nn.Module, Any], Tensor]
"""The mean training loss of a model on one batch, differentiable."""
_HELD = WeakTensorKeyDictionary()
"""The weights that pruners hold."""


class Pruner:
    """Prunes a model in a training loop of your own, and holds its zeros while an optimizer of torch trains it.

    Call `prune_if_due` before a step's forward pass, and `finish` at the end. Hooks do the rest, whoever calls
    `optimizer.step()`: gradients of pruned weights are 0 as soon as they are there, and pruned weights are 0 after the
    step, which is counted.

    Args:
        model: The model. The weights of its Conv and Linear layers are pruned.
        optimizer: The optimizer that trains it, or one that wraps it as its attribute `optimizer`.
        method: The pruning method: a name, a mapping of its `name` and its options, or an object.
        sparsity: Fraction of the prunable weights that is 0 in the end, from 0 to below 1.
        epochs: Length of the training that the plan divides.
        steps_per_epoch: Optimizer steps an epoch. With `epochs=1` all steps of the training are right, too.
        masks: Where weights are pruned: a mapping of `allocation`, `pattern`, `exclude`, `floor` and `target`, as
            `--masks`. With the pattern `channels`, LayerNorms of the model that normalise over channels which may go
            get a buffer that says which are kept; `slim` returns the model without them.
        schedule: Shape of `learning_rate` after its warm-up, where the method follows one schedule; or a function.
        warmup: Fraction of that schedule, from 0 to below 1, that rises linearly from 0.
        min_lr: Where that schedule ends, as a fraction of its largest rate.
        seed: Seed of methods and merges that draw.
        loss: `loss(model, batch)`, for methods that look at gradients, such as RigL.
        batches: Where its batches come from, such as the DataLoader; begun anew each time.
        example: The inputs of one example, on the CPU: for the pattern `channels`, which traces the model.
        options: Options of the method and of the masks by dotted names, as `**{"method.start": 0.2}`.

    Attributes:
        plan: The segments.
        starts: For each segment the number of steps after which it begins, with a pruning.
        steps: Optimizer steps of the whole plan.
        done: Optimizer steps taken.
        logged: What the method and merges logged last, by name.

    Raises:
        UserError: an option is bad, or does not suit the model, the optimizer or a loop of one's own.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        method: str | Mapping[str, Any] | PruningMethod = "gmp",
        sparsity: float = 0.9,
        epochs: int = 30,
        masks: Mapping[str, Any] | None = None,
        schedule: str | Callable[[float, float], float] = "cosine",
        warmup: float = 0.05,
        min_lr: float = 0.01,
        seed: int = 0,
        loss: Loss | None = None,
        batches: Iterable[Any] | None = None,
        example: Tensor | None = None,
        **options: Any,
    ) -> None:
        for name in options:
            if name.partition(".")[0] not in ("method", "masks") or "." not in name:
                raise UserError(f"{name} is no keyword of Pruner; dotted ones begin with method. or masks.")
        given = {"method": method, "sparsity": sparsity, "epochs": epochs, "seed": seed}
        given |= {"masks": masks} if masks else {}
        shape = {"schedule": schedule, "warmup": warmup, "min_lr": min_lr}
        call = read(FitConfig, {**given, "optimizer": shape, **options})
        self._config, self._objects = call.config, call.objects
        with keyword_names(), brought(self._objects):
            stages = make_stages(self._config)
            if steps_per_epoch < 1:
                raise UserError(f"steps_per_epoch is {steps_per_epoch}; give 1 or more, such as len(loader)")
            check_steps(self._config, stages, steps_per_epoch)
            _check_method(self._config.method, stages[0].plan)
            self._optimizer = _innermost(optimizer)
            self._weights = _weights(model, self._optimizer, self._config)
            self._channels = _channels(model, self._weights, self._config, example)
            if getattr(batches, "persistent_workers", False):
                raise UserError("batches keeps its workers, which serve one loop at a time; give another DataLoader")
        self._planned = make_plan(self._config, stages, steps_per_epoch)
        self.plan: tuple[Segment, ...] = stages[0].plan
        *starts, self.steps = accumulate((segment.steps for segment in self._planned), initial=0)
        self.starts, self.done = tuple(starts), 0
        self._method, self._model, self._loss, self._batches = self._config.method, model, loss, batches
        self._masks = zeros.full({name: weight.detach().cpu() for name, weight in self._weights.items()})
        self._beside: Tensors = {name: model.get_parameter(name) for name in _beside(self._channels)}
        self._masking: Masking | None = None  # before the first pruning
        self._beginnings: dict[int, Tensors] = {}
        self.logged: dict[str, float | str] = {}
        self._begun, self._change = 0, 0.0  # segments that began; ‖W − W_p‖₂ / ‖W‖₂ of the last one's pruning
        self._fresh = _Fresh(self._optimizer)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]
        for name, weight in (self._weights | self._beside).items():
            handle = weight.register_post_accumulate_grad_hook(partial(self._mask, name))  # type: ignore[no-untyped-call]
            self._handles.append(handle)
            _HELD[weight] = True

    # --- what a loop calls ------------------------------------------------------------------------

    def prune_if_due(self) -> bool:
        """Prune where a segment of the plan begins; call it before a step's forward pass.

        The masked weights and their optimizer state become 0. The optimizer's state is what it was when the pruner was
        made, where the method starts a segment with a new optimizer.

        Returns:
            Whether it pruned.

        Raises:
            RunError: the method's masks break the contract.
        """
        due = self._due
        while self._due:
            self._prune()
        return due

    @property
    def due_at(self) -> int:
        """The number of steps after which the next segment begins; after the last one, `steps`."""
        return self.starts[self._begun] if self._begun < len(self.starts) else self.steps

    @property
    def learning_rate(self) -> float:
        """The method's multiplier of the largest learning rate for the next step.

        Raises:
            RunError: it depends on a pruning that is due.
        """
        stage, middle = self._now()
        changes = (0.0, math.inf) if self._due else (self._change,)
        rates = {self._method.learning_rate(replace(stage, relative_change=change))(middle) for change in changes}
        if len(rates) > 1:
            raise RunError(
                "the learning rate depends on the pruning that is due; call prune_if_due() before asking for it"
            )
        return rates.pop()

    @property
    def masks(self) -> Tensors:
        """The masks of the prunable weights by parameter name: bool tensors on the CPU, True keeps."""
        return dict(self._masks)

    @property
    def sparsity(self) -> float:
        """The fraction of the prunable weights that is masked, 0 to 1."""
        return zeros.sparsity(self._masks)

    def finish(self) -> None:
        """Check that the model is as sparse as planned, to the weight, and remove the hooks.

        Raises:
            RunError: a pruning of the plan did not come, or a masked weight is not 0.
        """
        if self.done >= self.steps:
            self.prune_if_due()  # a plan may end with a pruning
        total, kept = sum(mask.numel() for mask in self._masks.values()), zeros.kept(self._masks)
        last = self.plan[-1].sparsity
        if self._channels:
            wrong = bool(self._channels.check_masks(self._masks, last, self._config.masks.floor))
        else:
            wrong = total - kept != round(last * total)
        if self._begun < len(self.plan) or wrong:
            raise RunError(
                f"{total - kept} of {total} prunable weights are 0, not {round(last * total)}: "
                f"{self.done} of {self.steps} optimizer steps were taken; correct epochs and steps_per_epoch"
            )
        zeros.check(_on_cpu(self._weights), self._masks, "the finished model")
        zeros.check(_on_cpu(self._beside), self._masks_beside(self._masks), "the finished model")
        self.release()

    def slim(self) -> nn.Module:
        """A copy of the model without the channels that are pruned, with the pattern `channels`.

        Raises:
            UserError: the pattern is another one.
        """
        if self._channels is None:
            raise UserError("slim() takes out whole channels; give Pruner masks={'pattern': 'channels'}")
        return slim.without(self._model, self._channels.axes(self._channels.kept(self._masks)))

    def release(self) -> None:
        """Remove the hooks: pruned weights are no longer held at 0, and steps no longer counted."""
        for handle in self._handles:
            handle.remove()
        for weight in self._weights.values():
            if weight in _HELD:
                del _HELD[weight]

    def soup(
        self,
        state_dicts: Sequence[Mapping[str, Tensor]],
        merge: str | Mapping[str, Any] | MergeStrategy = "uniform",
        *,
        score: Scorer | None = None,
        loss: Lossy | None = None,
        fisher: Fisher | None = None,
        parent: Mapping[str, Tensor] | None = None,
    ) -> Tensors:
        """Merge models that were trained under the present masks into one with exactly the same zeros.

        BatchNorm's running statistics are averaged; `torch.optim.swa_utils.update_bn` measures them again.

        Args:
            state_dicts: The models' state dicts.
            merge: The merge strategy: a name, a mapping of its `name` and its options, or an object.
            score: Scores a state dict by a number, higher is better, or by a `Score`, on data that are neither trained
                nor tested on; for merges that compare, such as `greedy` and `best`.
            loss: The loss of a state dict on such data, differentiable in its tensors, as `torch.func.functional_call`
                makes it; for merges that differentiate it, such as `learned`.
            fisher: `fisher(state_dict, examples)`, its diagonal Fisher information over so many training examples, a
                tensor for each parameter; for `fisher`.
            parent: The state dict that all were trained from, for merges that look at what changed, such as `ties`.

        Returns:
            A state dict on the CPU.

        Raises:
            UserError: the state dicts do not belong together or under the masks, or the merge needs what is not given.
            RunError: the merge strategy breaks its contract.
        """
        seed = derive(self._config.seed, "merge", max(self._begun - 1, 0))
        strategy = read(FitConfig, {"merge": merge}).config.merge
        return soup(state_dicts, self._masks, strategy, seed, score, loss, fisher, parent, self._probe(strategy))

    # --- its state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, beside the model's and the optimizer's state dicts.

        Numbers, lists and tensors, which `torch.load(…, weights_only=True)` reads.
        """
        return {
            "plan": self._signature(),
            "done": self.done,
            "begun": self._begun,
            "change": self._change,
            "masks": {name: mask.clone() for name, mask in self._masks.items()},
            "beginnings": {index: dict(tensors) for index, tensors in self._beginnings.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; before or after the model's and the optimizer's are loaded.

        Raises:
            UserError: it is the state of another plan or of another model.
        """
        if state["plan"] != self._signature():
            raise UserError("the pruner's state is of another plan; give the method, sparsity and epochs that it had")
        found: Tensors = state["masks"]
        if {n: m.shape for n, m in found.items()} != {n: m.shape for n, m in self._masks.items()}:
            raise UserError("the pruner's state is of other prunable weights; give the same model and masks")
        self.done, self._begun, self._change = state["done"], state["begun"], state["change"]
        self._beginnings = {index: dict(tensors) for index, tensors in state.get("beginnings", {}).items()}
        self._hold({name: found[name].to("cpu", torch.bool, copy=True) for name in self._masks})

    def _signature(self) -> list[list[float]]:
        return [[segment.stage.segment.sparsity, float(segment.steps)] for segment in self._planned]

    # --- hooks ------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the optimizer's step: see to the gradients, or let a closure, which makes them, do so."""
        if self._due:
            raise RunError(f"a pruning is due after {self.due_at} steps; call prune_if_due() before the forward pass")
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare_gradients()
            return None

        def prepared() -> Any:
            loss = closure()
            self._prepare_gradients()
            return loss

        return (args[0], prepared, *args[2:]), {key: value for key, value in kwargs.items() if key != "closure"}

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._masking is not None
        self._masking.mask_weights()
        self.done += 1

    @torch.no_grad()
    def _mask(self, name: str, weight: Tensor) -> None:
        """Zero the gradient of pruned weights as it is accumulated, so that clipping does not count it."""
        if self._masking is not None and weight.grad is not None:
            weight.grad.mul_(self._masking.all_masks[name])

    @torch.enable_grad()
    def _prepare_gradients(self) -> None:
        """Add the gradient of the method's penalty, and let the method change the gradients, where it has either."""
        masking = self._masking
        assert masking is not None
        if not (masking.penalised or masking.changes_gradients):
            return
        if getattr(self._optimizer, "grad_scale", None) is not None:
            raise UserError(
                f"method {type(self._method).__name__} changes gradients, which are still scaled; call "
                "scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        stage, middle = self._now()
        masking.weight_decay = _weight_decay(self._optimizer, self._weights)
        if masking.generator is not None:
            masking.generator.manual_seed(derive(self._config.seed, "step", self.done))
        step = masking.at((stage.start + middle * stage.segment.epochs) / stage.budget.epochs)
        if (penalty := masking.penalty(step)) is not None:
            weights = list(self._weights.values())
            for weight, grad in zip(weights, torch.autograd.grad(penalty, weights, allow_unused=True), strict=True):
                if grad is not None:
                    weight.grad = grad if weight.grad is None else weight.grad + grad
        masking.prepare_gradients(step)

    # --- segments ---------------------------------------------------------------------------------

    @property
    def _due(self) -> bool:
        return self._begun < len(self.plan) and self.done >= self.starts[self._begun]

    def _now(self) -> tuple[Stage, float]:
        """The segment of the next step, and the fraction of it that is done at the middle of that step.

        After the plan's last step it stays at the end of that step's segment.
        """
        index = bisect_right(self.starts, min(self.done, self.steps - 1)) - 1
        done = (self.done - self.starts[index] + 0.5) / self._planned[index].steps
        return self._planned[index].stage, min(done, 1.0)

    def _prune(self) -> None:
        """Begin the next segment."""
        segment = self._planned[self._begun]
        index, rewind = segment.stage.index, segment.stage.segment.rewind
        if index in (later.rewind for later in self.plan[index:]):
            self._beginnings[index] = cpu_state_dict(self._model)
        tensors = _on_cpu(dict(self._model.named_parameters()) | self._weights)
        beside = self._masks_beside(self._masks)
        parent = State(tensors, self._masks, target=self._config.sparsity, beside=beside)
        gradients, probe = partial(self._gradients, segment.stage), self._probe(self._method)
        with brought(self._objects):
            pruned, stage = prune(
                self._method, parent, segment.stage, self._config.masks, self._config.seed, gradients, probe,
                channels=self._channels,
            )  # fmt: skip
        if rewind is not None:
            self._model.load_state_dict(self._beginnings[rewind])
            self._fresh.restore()
        self._hold(pruned.masks).mask_weights()
        for name, weight in (self._weights | self._beside).items():
            # what grows back starts at 0, too
            kept = (parent.all_masks[name] & pruned.all_masks[name]).to(weight.device)
            for value in self._optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(kept)
        self._begun, self._change = self._begun + 1, stage.relative_change
        if segment.steps and self._method.learning_rate(stage).restarts:
            self._fresh.restore()

    def _hold(self, masks: Tensors) -> Masking:
        """Hold the weights by these masks from now on."""
        self._masks = masks
        own = self._beside, self._masks_beside(masks)
        self._masking = Masking(self._method, self._weights, masks, {}, self._config.sparsity, 0.0, *own)
        if self._channels:
            for name, kept in self._channels.buffers(self._channels.kept(masks)).items():
                self._model.get_buffer(name).copy_(kept)
        if self._masking.hooked:
            self._masking.generator = torch.Generator(next(iter(self._weights.values())).device)
        return self._masking

    def _masks_beside(self, masks: Tensors) -> Tensors:
        """The masks of norms and biases that go with masks of the weights."""
        return self._channels.masks_beside(self._channels.kept(masks)) if self._channels else {}

    def _probe(self, plugin: PruningMethod | MergeStrategy) -> Probe:
        """What a method or a merge can find out: the network, but no images, which only a run can read."""

        def model(tensors: Tensors | None = None) -> nn.Module:
            made = copy.deepcopy(self._model).eval()
            made.load_state_dict({**made.state_dict(), **(tensors or {})})
            return made

        def images(split: str, limit: int | None = None) -> Any:
            raise UserError(f"{type(plugin).__name__} looks at images, which Pruner has not; train with sparsekit.fit")

        kind = "merge" if isinstance(plugin, MergeStrategy) else "method"
        buffers = frozenset(name for name, _ in self._model.named_buffers())
        return Probe(buffers=buffers, model=model, images=images, log=notes(kind, plugin, self.logged))

    @torch.enable_grad()
    def _gradients(self, stage: Stage, batches: int = 1) -> Tensors:
        """The mean gradient of the loss over so many batches, on the CPU; torch's random state and buffers stay."""
        name = type(self._method).__name__
        if self._loss is None or self._batches is None:
            raise UserError(
                f"method {name} looks at gradients; give Pruner loss=, a function of the model and a batch, and "
                "batches=, such as the DataLoader"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise UserError(f"method {name} looks at gradients, which differ between ranks; choose another method")
        weights = list(self._weights.values())
        total = [torch.zeros_like(weight) for weight in weights]
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        taken = 0
        with torch.random.fork_rng(sorted({w.device.index for w in weights if w.device.type == "cuda"})):
            torch.manual_seed(derive(self._config.seed, "gradients", stage.index))
            for batch in islice(self._batches, batches):
                loss = self._loss(self._model, batch)
                if fault := loss_fault(loss):
                    raise UserError(f"loss {fault}")
                taken += 1
                found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(total, torch._foreach_div(found, batches))
        if taken < batches:
            raise UserError(f"method {name} looks at {batches} batches, but batches= has {taken}")
        with torch.no_grad():
            for key, buffer in self._model.named_buffers():
                buffer.copy_(buffers[key])
        return _on_cpu(dict(zip(self._weights, total, strict=True)))


class _Fresh:
    """An optimizer's state before its first step, for segments that begin with a new optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        used = any(float(entry.get("step", 1.0)) for entry in optimizer.state.values())  # some make theirs at once
        self.state = {} if used else {p: copy.deepcopy(entry) for p, entry in optimizer.state.items()}

    def restore(self) -> None:
        """Forget all steps."""
        self.optimizer.state.clear()
        self.optimizer.state.update({p: copy.deepcopy(entry) for p, entry in self.state.items()})
        for group in self.optimizer.param_groups:
            group.pop("step", None)  # some count their steps here


def _on_cpu(tensors: Tensors) -> Tensors:
    """Copies on the CPU, of types that numpy has."""
    found = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return {name: t.float() if t.dtype is torch.bfloat16 else t for name, t in found.items()}


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside what Accelerate or Lightning wraps around it; raises UserError if it calls no hooks."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    if not (isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False)):
        raise UserError(f"optimizer: {type(optimizer).__name__} calls no step hooks of torch.optim; give one that does")
    return optimizer


def _check_method(method: PruningMethod, plan: Sequence[Segment]) -> None:
    """Raise UserError for a method that needs more of a training than hooks on its optimizer."""
    name = type(method).__name__
    if has_dense_weights(method) or type(method).extra is not PruningMethod.extra:
        why = "trains dense weights behind its masks, or tensors of its own, so the forward pass is not the model's"
    elif any(segment.average_from is not None for segment in plan):
        why = "averages weights along the training, after which BatchNorm is measured again"
    else:
        return
    raise UserError(f"method {name} {why}; train it with sparsekit fit, or choose another method")


def _weights(model: nn.Module, optimizer: Optimizer, config: FitConfig) -> Tensors:
    """The prunable weights by name; raises UserError where they do not suit the options or are not trained."""
    names = zeros.prunable_names(model, config.masks.exclude)
    weights: Tensors = {name: model.get_parameter(name) for name in names}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, weight in weights.items():
        if id(weight) not in held or not weight.requires_grad:
            raise UserError(f"the optimizer does not train {name}; leave it out: masks={{'exclude': [{name!r}]}}")
        if weight in _HELD:
            raise UserError(f"another pruner holds {name}; call its release() first")
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if ChannelPattern.parse(config.masks.pattern):
        return weights
    pattern = Pattern.parse(config.masks.pattern) if config.masks.pattern is not None else None
    if pattern:
        pattern.check(shapes, config.sparsity, config.masks.exclude)
    share = pattern.share if pattern else 1.0
    allocation.check_floor(("--masks.floor", "--sparsity"), shapes, config.masks.floor, config.sparsity, share)
    return weights


def _channels(model: nn.Module, weights: Tensors, config: FitConfig, example: Tensor | None) -> Channels | None:
    """The channels that can be removed, with the pattern `channels`; raises UserError where there is no example."""
    pattern = ChannelPattern.parse(config.masks.pattern)
    if pattern is None:
        return None
    if example is None:
        raise UserError("masks with the pattern channels trace the model; give example=, the inputs of one example")
    found = coupling.prepared(model, list(weights), example.cpu(), pattern, config.masks.target, cost.flops)
    found.check(config.masks.floor, config.sparsity)
    return found


def _beside(channels: Channels | None) -> Sequence[str]:
    return channels.beside if channels else ()


def _weight_decay(optimizer: Optimizer, weights: Tensors) -> float:
    """The weight decay of the prunable weights; raises UserError where they have several."""
    prunable = {id(weight) for weight in weights.values()}
    groups = [group for group in optimizer.param_groups if prunable & {id(p) for p in group["params"]}]
    found = {float(group.get("weight_decay", 0.0)) for group in groups}
    if len(found) > 1:
        raise UserError(f"the prunable weights have weight decays {sorted(found)}, but the method needs one")
    return found.pop()
