"""Every option of every command that trains or reads models, as dataclasses: names, types, defaults, help."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.config import yaml_file
from sparsekit.errors import UserError
from sparsekit.plugins.registry import GROUPS, Kind, name_of
from sparsekit.tasks.classification import Classification


@dataclass(frozen=True)
class ReplicasConfig:
    """Copies of the parent that are trained apart and merged at every pruning step.

    Args:
        count: How many replicas a segment trains.
        vary: What replicas differ in: `seed`, `weight_decay`, `lr`, `epochs`, `subsample`, `label_smoothing`,
            `augment`, or `method.NAME` for a number among the method's own options. `seed` (batch order and
            augmentation) always does; the other axes add to it.
        values: One value a replica. `weight_decay`, `lr`, `label_smoothing`, `augment` (`--data.augment_strength`) and
            `method.NAME`: the value itself; `epochs`: fraction of the segment's length, 0 to 1; `subsample`:
            class-balanced fraction of the training data; `seed`: an integer. By default `weight_decay`, `lr` and
            `augment` run from half to twice the base value, `label_smoothing` from 0 to twice the base value, or to 0.2
            where that is 0, `epochs` from 0.5 to 1; `subsample` is 0.8 for all; `method.NAME` needs values.
        start: Fraction of the budget, from 0 to below 1, before which one model trains alone: a segment that starts
            earlier is not forked. Replicas that part from random weights do not average well at first.
        executor: How replicas share a device: one after another, or `vectorized`, stacked and trained in lockstep.
            `auto` stacks small models on CUDA. Under `torchrun`, ranks share the replicas out first.
        batchnorm: BatchNorm statistics of replicas and soups: measured again on up to 10,000 training images, without
            augmentation; or the replicas' running ones, and averages of these.
        sync_batchnorm: Where several ranks train one replica: normalise by the whole batch, not by each rank's part.
    """

    count: int = 3
    vary: str = "seed"
    values: list[float] | None = None
    start: float = 0.2
    executor: Literal["auto", "sequential", "vectorized"] = "auto"
    batchnorm: Literal["recalibrate", "average"] = "recalibrate"
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The timm model.

    Args:
        name: A timm model name; sparsekit adds `cifar_resnet20`, `cifar_resnet56`, `cifar_resnet18` and
            `cifar_wrn28_10`. By default a small ResNet for small images: `resnet18` with the keyword arguments
            `layers: [1, 1, 1, 1]`, `channels: [16, 32, 60, 104]`.
        pretrained: Start from timm's pretrained weights, or, with `--model.name local-dir:DIR`, from those in DIR.
        init: Start from a trained model: a run directory, a directory that timm saved, or a file of its weights. Its
            zeros stay masked; methods that regrow weights may take them back. The architecture is its own, where
            `--model.name` is not given and it says so.
        new_head: Take all of `--model.init` but its classifier, which starts dense and random: for data of other
            classes.
        kwargs: Further keyword arguments of `timm.create_model`, such as `{drop_path_rate: 0.1}`.
    """

    name: str | None = None
    pretrained: bool = False
    init: str | None = None
    new_head: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """The data set and its batches.

    Args:
        name: The data set: `digits`, which comes with sparsekit; `fashion_mnist`, `mnist`, `cifar10` or `cifar100`,
            read from `--data.root`; `imagefolder`, any set of images in one folder a class, as ImageNet is; one that a
            package provides; or `module:function`, which returns a `sparsekit.Data` of your own. Options of the last
            two stand beside these.
        root: Folder of the data set's files, as torchvision lays them out or bare; the MNISTs' `.gz` files, too. For
            `imagefolder` the folder with `train` (or `training`) and, for the test images, `test` (`testing`) or `val`
            (`valid`, `validation`), in any case of letters; where there are both, `val` is held out. Without these, a
            folder of classes, of which test images are cut off too.
        labels: How an image of `imagefolder` gets its label where folders lie in folders: `folder`, by the folder right
            below `train`, as torchvision does; `path`, by its whole path below `train`, as Places365 needs. Must be
            given where a class's folder would hold images in several folders, and none of its own.
        white: The value that is white in `imagefolder`'s 16-bit grey images, such as 4095 where they hold 12 bits;
            65535 by default.
        batch_size: Images an optimizer step.
        image_size: Side in pixels to which images are resized; by default that in the config.json of a finished model,
            else 16 for digits, 224 for `imagefolder`, else their own.
        held_out: Fraction of the training images kept for the merges, 0 to 1 (digits: 397 images, always; an
            `imagefolder` with `val` and `test`: those of `val`).
        augment: Random shifts, and horizontal flips where they keep the label; for `imagefolder` timm's random crops
            of the image, flips and colour jitter.
        augment_strength: How strong that is, 0 to 4: at 0 nothing is done, 1 is the usual. Shifts grow with it; flips
            are as frequent as at 1 above it. For `imagefolder` crops, ratios, jitter, probabilities and the magnitude
            of `rand` or `augmix` in `auto_augment` follow it, each within its range.
        workers: Processes that read images of folders, or the examples of a data set of your own, at most one a core;
            their number changes no result.
        kwargs: How `imagefolder` is augmented and resized: arguments of `timm.data.create_loader`, such as
            `{auto_augment: rand-m9-mstd0.5, re_prob: 0.25}`. Its `mean`, `std`, `crop_pct`, `crop_mode` and
            `interpolation` hold over a model's config.json.
        limit: Train on some of the training data: a number of examples, 1 or more, or a fraction below 1; of every
            class its share.
        fold: `k/n` holds out the k-th of n folds of the training data, of every class its share, instead of
            `--data.held_out`.
        mean: What normalisation subtracts, black 0 to white 1 for images: a number, or one for each channel; by default
            measured, or as a model's config.json says.
        std: What normalisation divides by, above 0, as for `mean`.
        options: The options of the data set's own function.
    """

    name: str = "digits"
    root: str | None = None
    labels: Literal["folder", "path"] | None = None
    white: int | None = None
    batch_size: int = 50
    image_size: int | None = None
    held_out: float = 0.1
    augment: bool = True
    augment_strength: float = 1.0
    workers: int = 4
    kwargs: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    fold: str | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict, metadata={"flat": True})


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its original schedule.

    Args:
        name: A timm optimizer name, such as `sgd`, `adamw` or `lamb`.
        lr: Largest learning rate.
        weight_decay: Weight decay; never on biases and norms.
        momentum: Momentum, for the optimizers that have one.
        schedule: Shape of the original schedule after its warm-up: `cosine`, `linear`, `constant`, one that a package
            provides, or `module:function`.
        warmup: Fraction of the schedule, from 0 to below 1, that rises linearly from 0.
        min_lr: Where the schedule ends, as a fraction of `lr`.
        clip_norm: Largest norm of the gradient; none by default.
        kwargs: Further keyword arguments of the optimizer, such as `{betas: [0.9, 0.95]}`.
    """

    name: str = "sgd"
    lr: float = 0.2
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = field(default="cosine", metadata={"kind": "schedule"})
    warmup: float = 0.05
    min_lr: float = 0.01
    clip_norm: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MasksConfig:
    """Which weights are pruned, and where.

    Args:
        allocation: How sparsity is shared out between layers: `global`, `uniform`, `erk`, `lamp`, as a package provides
            or as `module:function` says; by default as the method prefers, mostly `global`.
        pattern: `n:m` keeps at most n of every m weights that follow one another along the input channels, as `2:4`.
            `channels` prunes whole channels of coupled layers, and attention heads; `channels:8` keeps multiples of 8.
        exclude: Regular expressions; a Conv or Linear weight whose parameter name one of them finds is never pruned.
        floor: What every layer keeps at least: so many weights, 1 or more, or a fraction of the layer below 1. 0 lets a
            layer lose all. With the pattern `channels`, what every group of coupled layers keeps of its channels, of
            which at least one stays.
        target: What `--sparsity` counts with the pattern `channels`: the prunable weights, all parameters, or the
            floating-point operations of one image.
    """

    allocation: str | None = field(default=None, metadata={"kind": "allocation"})
    pattern: str | None = None
    exclude: list[str] = field(default_factory=list)
    floor: float = 0.0
    target: Literal["weights", "parameters", "flops"] = "weights"


@dataclass(frozen=True)
class DistillConfig:
    """Soft labels: `--distill DIR` trains against a teacher's answers too (arXiv 1503.02531).

    Args:
        model: The teacher: a run directory or a directory that timm saved, trained on the same classes.
        temperature: What the logits of both are divided by.
        weight: Share of the soft labels in the loss, 0 to 1; the rest is the labels'.
    """

    model: str | None = None
    temperature: float = 4.0
    weight: float = 0.5


@dataclass(frozen=True)
class WandbConfig:
    """The W&B mirror of `metrics.jsonl`.

    Args:
        mode: `auto` is online where credentials are found, else offline; it never asks.
        project: W&B project.
        group: Runs of one group are shown together.
        tags: Tags of the run, such as `[baseline, digits]`.
        notes: What the run is about, for people.
        job_type: Kind of run, to filter by.
        artifact: Online, upload the finished model and its masks.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "sparsekit"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    job_type: str | None = None
    artifact: bool = True


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, from which `--resume` goes on.

    Args:
        minutes: Time between checkpoints inside a replica's training; one is kept at its end in any case.
    """

    minutes: float = 5.0


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured beside score and loss.

    Args:
        diagnostics: At every merge, how far apart the candidates are and what their ensemble would do.
        margin: A soup whose held-out score is more than this below its best candidate's has lost.
        corruptions: Test the finished model on corrupted images too.
        report: Write `report.html` at the end.
    """

    diagnostics: bool = True
    margin: float = 0.01
    corruptions: bool = False
    report: bool = True


@dataclass(frozen=True)
class FitConfig:
    """Train, prune and merge.

    Args:
        method: Pruning method, by name.
        merge: Merge strategy, by name.
        task: What the model is trained for, by name: its loss and its score.
        sparsity: Fraction of the prunable weights (Conv and Linear) that is 0 in the end, from 0 to below 1.
        epochs: Total budget in passes over the training data.
        label_smoothing: Label smoothing of the training loss, from 0 to below 1, for tasks that have it.
        channels_last: Keep images and convolutions in channels-last memory order.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto` is bf16 on CUDA devices that have it, else fp32; fp16 scales its loss. tf32, on CUDA devices
            alone, rounds the factors of products to 10 bits.
        compile: Compile the training's forward and backward pass with torch.compile; worth it for long runs.
        cuda_graphs: Record training steps as CUDA graphs, of one replica or of all that are stacked, where a recorded
            step does what a plain one does.
        seed: Seed of everything random.
        resume: Go on with the run in `--out` from its newest checkpoint, with the same weights in the end.
        imports: A module, in the current directory or installed, that is imported first: one that registers models
            with timm. May be given several times.
        out: Run directory, new or empty; by default `runs/<method>-<merge>-<time>-<random>`, under a
            W&B sweep agent `runs/sweep-<sweep>/<method>-<merge>-<run>`.
    """

    method: PruningMethod
    merge: MergeStrategy
    task: Task = field(default_factory=Classification)
    sparsity: float = 0.9
    epochs: int = 30
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    masks: MasksConfig = field(default_factory=MasksConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    label_smoothing: float = 0.0
    channels_last: bool = True
    device: str = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = True
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    resume: bool = False
    imports: list[str] = field(default_factory=list)
    out: str | None = None


@dataclass(frozen=True)
class ArchitectureConfig:
    """The architecture of saved weights that do not say it themselves.

    Args:
        name: A timm model name.
        kwargs: Further keyword arguments of `timm.create_model`, such as `{num_classes: 10, in_chans: 1}`.
    """

    name: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeConfig:
    """Average finished models.

    Args:
        merge: Merge strategy, by name.
        task: What the models were trained for, by name; by default as the first sparsekit run given says.
        out: Directory for the merged model, new or empty; also `-o`.
        masks: What to do where the models' zeros differ: refuse, or keep what any of them keeps.
        prune_again: Prune the merged model by magnitude to this sparsity, from 0 to below 1; also `--prune-again`.
        allocation: How `--prune-again` shares sparsity out between layers, as `--masks.allocation` of `sparsekit fit`.
        floor: What every layer keeps at least under `--prune-again`: so many weights, 1 or more, or a fraction below 1.
        parent: The model that all were trained from, for merges that compare with it; a directory or file, too.
        batchnorm: BatchNorm statistics of a merged model: measured again where there is data, or averaged.
        model: The architecture, where the models do not say it themselves.
        data: Images for merges that look at some, and for BatchNorm; by default those of the first sparsekit run given.
        device: Where models run: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: Seed of merges that draw.
        imports: A module that registers the model with timm, as in `sparsekit fit`; those of a run are imported anyway.
    """

    merge: MergeStrategy
    task: Task = field(default_factory=Classification)
    out: str | None = None
    masks: Literal["same", "union"] = "same"
    prune_again: float | None = None
    allocation: str = field(default="global", metadata={"kind": "allocation"})
    floor: float = 0.0
    parent: str | None = None
    batchnorm: Literal["recalibrate", "average"] = "recalibrate"
    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: str = "auto"
    seed: int = 0
    imports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExportConfig:
    """Write a finished model in another format, load it again, and compare.

    Args:
        format: `timm` (a directory), `onnx`, `torch` (a torch.export program), `sparse` (compressed safetensors),
            `2:4` (a directory for the semi-structured units of CUDA devices), one that a package provides, or
            `module:FORMAT`.
        out: What to write, new; also `-o`.
        measure: Time the exported model against the same one without zeros.
        task: What the model was trained for, by name; by default as its run says.
        model: The architecture, where the model does not say it itself.
        data: Images to compare on; by default those of the run. Without any, random ones.
        imports: A module that registers the model with timm, as in `sparsekit fit`; those of a run are imported anyway.
    """

    format: str | None = field(default=None, metadata={"kind": "format"})
    out: str | None = None
    measure: bool = False
    task: Task = field(default_factory=Classification)
    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    imports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a finished model on its test images.

    Args:
        task: What the model was trained for, by name; by default as its run says.
        model: The architecture, where the model does not name it itself.
        data: The data set; by default the run's own.
        corruptions: Also test on images corrupted in sixteen ways at five severities each.
        corruption_files: Also test on the files of this folder, laid out as CIFAR-10-C and CIFAR-100-C are published.
        batchnorm: BatchNorm statistics as saved, measured again on training images, or one beside the other.
        dense: Run or model to compare with: the share of test images on which both predict the same class.
        seed: Seed of the corruptions.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto` is bf16 on CUDA devices that have it, else fp32; tf32 as in training.
        channels_last: Keep images and convolutions in channels-last memory order.
        imports: A module that registers the model with timm, as in `sparsekit fit`; those of a run are imported anyway.
        out: JSON file of the result; also `-o`. A run's default: RUN/evaluation.json.
    """

    task: Task = field(default_factory=Classification)
    model: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataConfig = field(default_factory=DataConfig)
    corruptions: bool = False
    corruption_files: str | None = None
    batchnorm: Literal["saved", "recalibrated", "both"] = "saved"
    dense: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    imports: list[str] = field(default_factory=list)
    out: str | None = None


FREE = {"out", "resume", "checkpoint", "wandb", "evaluation", "data.workers", "replicas.executor", "cuda_graphs"}
"""Options and groups that a resumed run may give other values for.

They do not change the result; another executor changes its rounding, and the random numbers of dropout.
"""


def option_types(owner: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every option of a dataclass under its dotted name; that of a group is a dataclass."""
    types = {f"{prefix}{name}": kind for name, kind in get_type_hints(owner).items()}
    for item in fields(owner):
        if item.metadata.get("flat"):
            del types[f"{prefix}{item.name}"]
        if is_dataclass(item.default_factory):
            types |= option_types(item.default_factory, f"{prefix}{item.name}.")
    return types


def chosen_kinds(owner: Any, prefix: str = "") -> dict[str, Kind]:
    """The options of a dataclass that name an allocation, a schedule or a format, under dotted names, and the kind."""
    found: dict[str, Kind] = {}
    for item in fields(owner):
        if "kind" in item.metadata:
            found[f"{prefix}{item.name}"] = item.metadata["kind"]
        if is_dataclass(item.default_factory):
            found |= chosen_kinds(item.default_factory, f"{prefix}{item.name}.")
    return found


def option_defaults(owner: Any, prefix: str = "") -> dict[str, Any]:
    """The default of every option of a dataclass that has one, under its dotted name."""
    defaults: dict[str, Any] = {}
    for item in fields(owner):
        if is_dataclass(item.default_factory):
            defaults |= option_defaults(item.default_factory, f"{prefix}{item.name}.")
        elif item.metadata.get("flat"):
            continue
        elif item.default is not MISSING:
            defaults[f"{prefix}{item.name}"] = item.default
        elif item.default_factory is not MISSING:
            made = item.default_factory()
            defaults[f"{prefix}{item.name}"] = _plugin(item.name, made)["name"] if item.name in GROUPS else made
    return defaults


def describe(config: FitConfig | MergeConfig) -> dict[str, Any]:
    """The complete configuration as plain data, plugins as their name and options; what config.yaml holds."""
    plain: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name in GROUPS:
            plain[item.name] = _plugin(item.name, value)
        else:
            plain[item.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    plain["data"] |= plain["data"].pop("options")
    return dict(yaml_file.unquoted(plain))


def flatten(plain: dict[str, Any]) -> dict[str, Any]:
    """The same under the options' dotted names, such as `method`, `method.start` and `replicas.count`."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if key in GROUPS:
            flat[key] = value["name"]
            flat |= {f"{key}.{name}": option for name, option in value.items() if name != "name"}
        elif isinstance(value, dict):
            flat |= {f"{key}.{name}": option for name, option in value.items()}
        else:
            flat[key] = value
    return flat


def plugin_name(kind: Kind, cls: type) -> str:
    """The name of a plugin's class, as config.yaml records it: `module:Class` where no package names it."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    name = name_of(kind, path)
    return f"{cls.__module__}:{cls.__qualname__}" if name == path else name


def option_names(cls: type[Any]) -> list[str]:
    """The options of a plugin's class: what its constructor takes."""
    return [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)


def _plugin(kind: Kind, plugin: PruningMethod | MergeStrategy | Task) -> dict[str, Any]:
    cls = type(plugin)
    name = plugin_name(kind, cls)
    options = option_names(cls)
    missing = [option for option in options if not hasattr(plugin, option)]
    if missing:
        raise UserError(
            f"{kind} {name!r} breaks the contract: it must keep its option {missing[0]!r} as self.{missing[0]}"
        )
    return {"name": name, **{option: getattr(plugin, option) for option in options}}
