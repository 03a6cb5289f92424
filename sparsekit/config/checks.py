"""The values that options may have, as far as they can be checked without torch and without data."""

from __future__ import annotations

import math
import re

from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.config.options import DataConfig, FitConfig
from sparsekit.config.replica_axes import check_axis
from sparsekit.config.wandb_limits import check_wandb
from sparsekit.errors import UserError
from sparsekit.plugins.choices import check_choice


def fold_of(text: str) -> tuple[int, int]:
    """The k and n of `--data.fold k/n`; raises UserError where the text says something else."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]) >= 2:
        raise UserError(f"--data.fold is {text}; give k/n, the k-th of n folds, such as 1/5")
    return int(found[1]), int(found[2])


def limit_of(limit: float, count: float = math.inf) -> int:
    """How many of so many training examples `--data.limit` keeps; raises UserError where that is none, or too many."""
    if not (0.0 < limit < 1.0 or (1.0 <= limit < math.inf and limit == int(limit))):
        raise UserError(f"--data.limit is {limit:g}; give a number of examples, 1 or more, or a fraction below 1")
    kept = int(limit) if limit >= 1.0 or count == math.inf else round(limit * count)
    if count < math.inf and not 1 <= kept <= count:
        raise UserError(f"--data.limit {limit:g} of {count:g} training examples; give 1 to {count:g}, or a fraction")
    return kept


def _each(value: float | list[float] | None) -> list[float]:
    return [] if value is None else value or [math.nan] if isinstance(value, list) else [value]


def check_device(device: str) -> None:
    """Raise UserError where the text names no device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"--device is {device}; give auto, cpu, cuda or cuda:N")


def check_floor(options: tuple[str, str], floor: float, sparsity: float) -> None:
    """Raise UserError where a floor is neither a whole number nor a fraction, or more than the sparsity leaves."""
    if not (0.0 <= floor < 1.0 or (floor < math.inf and floor == int(floor) >= 1)):
        raise UserError(
            f"{options[0]} is {floor:g}; give a number of weights, 1 or more, or a fraction of a layer below 1"
        )
    if floor < 1.0 and floor > 1.0 - sparsity + 1e-12:
        raise UserError(
            f"{options[0]} {floor:g} keeps that fraction of every layer, but {options[1]} {sparsity:g} leaves "
            f"{1.0 - sparsity:.4g} of all weights; lower one of them"
        )


def check(config: FitConfig) -> None:
    """Raise UserError, with the option, the value and the fix, where an option has a value that it may not have."""
    o, d, r, t = config.optimizer, config.data, config.replicas, config.distill
    below_one = "a fraction from 0 to below 1"
    meant = config.sparsity / 100 if 2.0 <= config.sparsity < 100.0 else 0.9
    rules = [
        ("sparsity", config.sparsity, 0.0 <= config.sparsity < 1.0, f"{below_one}, such as {meant:g}"),
        ("epochs", config.epochs, config.epochs >= 1, "1 or more"),
        ("label_smoothing", config.label_smoothing, 0.0 <= config.label_smoothing < 1.0, below_one),
        ("seed", config.seed, config.seed >= 0, "0 or more"),
        ("replicas.count", r.count, 1 <= r.count <= 1000, "1 to 1000"),
        ("replicas.start", r.start, 0.0 <= r.start < 1.0, below_one),
        ("data.batch_size", d.batch_size, d.batch_size >= 1, "1 or more"),
        ("data.held_out", d.held_out, 0.0 < d.held_out < 1.0, "a fraction above 0 and below 1"),
        ("data.augment_strength", d.augment_strength, 0.0 <= d.augment_strength <= 4.0, "0 (none) to 4"),
        ("data.image_size", d.image_size, d.image_size is None or 4 <= d.image_size <= 1024, "4 to 1024 pixels"),
        ("data.white", d.white, d.white is None or 1 <= d.white <= 65535, "1 to 65535"),
        ("data.workers", d.workers, 0 <= d.workers <= 256, "0 (read in this process) to 256"),
        ("data.mean", d.mean, all(map(math.isfinite, _each(d.mean))), "a number, or one for each channel"),
        ("data.std", d.std, all(0.0 < v < math.inf for v in _each(d.std)), "a number above 0, or one for each channel"),
        ("optimizer.lr", o.lr, 0.0 < o.lr < math.inf, "a number above 0"),
        ("optimizer.weight_decay", o.weight_decay, 0.0 <= o.weight_decay < math.inf, "0 or more"),
        ("optimizer.momentum", o.momentum, 0.0 <= o.momentum < 1.0, below_one),
        ("optimizer.warmup", o.warmup, 0.0 <= o.warmup < 1.0, below_one),
        ("optimizer.min_lr", o.min_lr, 0.0 <= o.min_lr <= 1.0, "a fraction of --optimizer.lr from 0 to 1"),
        ("optimizer.clip_norm", o.clip_norm, o.clip_norm is None or 0.0 < o.clip_norm < math.inf, "a number above 0"),
        ("evaluation.margin", config.evaluation.margin, 0.0 <= config.evaluation.margin <= 1.0, "a fraction of 0 to 1"),
        ("distill.temperature", t.temperature, 0.0 < t.temperature < math.inf, "a number above 0"),
        ("distill.weight", t.weight, 0.0 <= t.weight <= 1.0, "a fraction from 0 to 1"),
        ("checkpoint.minutes", config.checkpoint.minutes, config.checkpoint.minutes > 0.0, "a number above 0"),
        ("out", f"{config.out!r}", config.out is None or (config.out and "\0" not in config.out), "a directory"),
    ]
    for option, value, valid, rule in rules:
        if not valid:
            raise UserError(f"--{option} is {value}; give {rule}")
    check_axis(config)
    if config.masks.allocation is None:
        method = type(config.method)
        check_choice("allocation", method.allocation, f"{method.__name__}.allocation")
    channels = ChannelPattern.parse(config.masks.pattern)
    # what a floor of channels leaves of the weights only the model can tell
    check_floor(("--masks.floor", "--sparsity"), config.masks.floor, 0.0 if channels else config.sparsity)
    check_device(config.device)
    check_wandb(config.wandb)
    if d.limit is not None:
        limit_of(d.limit)
    if d.fold is not None:
        fold_of(d.fold)
    if d.fold is not None and d.held_out != DataConfig.held_out:
        raise UserError("--data.fold and --data.held_out both say what is held out; give one of them")
    if not d.augment and d.augment_strength != DataConfig.augment_strength:
        raise UserError(
            f"--data.augment_strength is {d.augment_strength:g}, but --data.augment is false; leave one out"
        )
    for option, value in (("mean", d.mean), ("std", d.std)):
        if value is not None and option in d.kwargs:
            raise UserError(f"--data.{option} and --data.kwargs both give {option}; give one of them")
    if config.model.init is not None and config.model.pretrained:
        raise UserError("--model.init and --model.pretrained both say where weights come from; give one of them")
    if config.model.new_head and config.model.init is None:
        raise UserError("--model.new_head is true, but no model is given whose head it replaces; give --model.init")
    mappings = {"model.kwargs": config.model.kwargs, "optimizer.kwargs": o.kwargs, "data.kwargs": d.kwargs}
    for option, kwargs in mappings.items():
        for key in kwargs:
            if not str(key).isidentifier():  # `{layers:3}` is a key of that name, without a value
                raise UserError(f"--{option}: {key!r} is no argument; write {{name: value}}, with a space")
    if channels is None and config.masks.target != "weights":
        raise UserError(f"--masks.target {config.masks.target} is for whole channels; add --masks.pattern channels")
    if config.masks.pattern is not None and channels is None:
        from sparsekit.config.nm_pattern import Pattern  # only now: it imports numpy

        nm = Pattern.parse(config.masks.pattern)
        if 1.0 > config.masks.floor > nm.share:
            raise UserError(
                f"--masks.floor {config.masks.floor:g} keeps more of a layer than the {nm.share:g} of "
                f"--masks.pattern {nm}; lower it"
            )
    for pattern in config.masks.exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--masks.exclude: {pattern!r} is no regular expression: {error}") from error
