"""A user's own examples in batches on the device, in an order that a seed fixes."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from sparsekit.api import Task
from sparsekit.config.options import DataConfig
from sparsekit.data import choose, order
from sparsekit.data.contents import Contents, Part, cut_by, limited_by
from sparsekit.data.examples import Data
from sparsekit.data.images import Split
from sparsekit.data.inputs import InputConfig, MadeImages, with_statistics
from sparsekit.data.stream import handled_signals, random_states_kept, seed_all, without_alarm
from sparsekit.errors import ReadError, UserError, first_line
from sparsekit.files import digest
from sparsekit.plugins.objects import path_of
from sparsekit.seeds import derive

Batch = tuple[Tensor, Tensor]
Numbered = list[tuple[int, int]]
"""The examples of a batch: index and seed of each."""


_TRIED = 20
"""Examples that are read to see whether a data set's `targets` are those that it gives."""


class Source(Protocol):
    """Where examples come from.

    Attributes:
        what: The split of `Data` that gives them.
    """

    what: str

    def __len__(self) -> int: ...

    def batches(self, numbers: Iterable[Numbered]) -> Iterator[Batch]:
        """The batches with these examples."""

    def targets(self) -> Tensor:
        """The targets of all examples, on the CPU."""

    def record(self) -> str:
        """What can be told of the examples, so that others are noticed."""


class TensorPair:
    """Inputs and targets as tensors, held on the device."""

    def __init__(self, inputs: Any, targets: Any, device: torch.device, what: str) -> None:
        try:
            self.inputs, self.labels = (torch.as_tensor(each) for each in (inputs, targets))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"data.{what}: no tensors ({first_line(error)}); give numbers") from error
        if not self.inputs.dim() or not self.labels.dim() or len(self.inputs) != len(self.labels):
            sizes = " and ".join(str(tuple(each.shape)) for each in (self.inputs, self.labels))
            raise UserError(
                f"data.{what}: inputs and targets of shapes {sizes} do not belong together; give [N, ...] each"
            )
        if len(odd := not_finite(self.inputs)):
            raise UserError(f"data.{what}: the input of example {odd[0]} is not finite; correct it, or leave it out")
        self.what = what
        self.on_device = self.inputs.to(device), self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, numbers: Iterable[Numbered]) -> Iterator[Batch]:
        inputs, targets = self.on_device
        for batch in numbers:
            index = torch.tensor([index for index, _ in batch])
            if inputs.is_cuda:
                index = index.pin_memory().to(inputs.device, non_blocking=True)
            yield inputs[index], targets[index]

    def targets(self) -> Tensor:
        return self.labels

    def record(self) -> str:
        return digest({"inputs": self.inputs, "targets": self.labels})


class Examples(Dataset[Any]):
    """A map-style data set whose examples are read under a seed each, by several processes."""

    def __init__(self, dataset: Any, device: torch.device, workers: int, what: str) -> None:
        self.dataset, self.device, self.workers, self.what = dataset, device, workers, what
        # Ctrl-C, GNU timeout, Slurm and systemd signal the whole process group, but the run itself ends its workers
        self.signals = handled_signals()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        index, seed = numbered
        with random_states_kept(None):
            seed_all(seed)
            return self.dataset[index]

    def batches(self, numbers: Iterable[Numbered]) -> Iterator[Batch]:
        loader = DataLoader(
            self, batch_sampler=_Once(numbers), num_workers=self.workers, collate_fn=self._collated,
            pin_memory=self.device.type == "cuda", worker_init_fn=self._begin_worker,
            generator=torch.Generator(),  # or the loader would draw from the random numbers of the training
        )  # fmt: skip
        with without_alarm():
            batches = iter(loader)
        try:
            for inputs, targets in batches:
                yield inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        except Exception as error:  # a user's data set may raise anything
            told = _last_line(error).removeprefix(f"{type(error).__name__}: ")
            if isinstance(error, UserError):  # with a worker's traceback, if it comes from there
                raise UserError(told.rpartition("UserError: ")[2]) from error
            ended = ("worker" in told and "exited unexpectedly" in told) or "is killed by signal" in told
            hint = "lower --data.workers if memory is short, then go on with --resume" if ended else "correct it"
            raise ReadError(
                f"data.{self.what}: an example cannot be read ({type(error).__name__}: {told}); {hint}"
            ) from error
        finally:  # workers ignore the signal with which Python ends them, and an error keeps this frame
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def targets(self) -> Tensor:
        return targets_of(self.dataset, self._read)

    def _read(self, indices: Tensor) -> Tensor:
        """The targets of some examples, read one by one."""
        numbers = ([(i, 0) for i in some.tolist()] for some in torch.split(indices, 500))
        return torch.cat([targets.cpu() for _, targets in self.batches(numbers)])

    def record(self) -> str:
        inputs, targets = self._collated([self[0, derive("first")]])
        first = TensorPair(inputs, targets, torch.device("cpu"), self.what)
        return f"{len(self):,} of {path_of(self.dataset)}, the first {first.record()}"

    def _collated(self, examples: list[Any]) -> Batch:
        if not all(isinstance(each, (tuple, list)) and len(each) == 2 for each in examples):
            raise UserError(
                f"data.{self.what}: an example is {type(examples[0]).__name__}; give (input, target) for each"
            )
        inputs, targets = default_collate(examples)
        for name, each in (("input", inputs), ("target", targets)):
            if not isinstance(each, Tensor):
                raise UserError(
                    f"data.{self.what}: its {name} is no tensor, array or number; give one for each example"
                )
        return inputs, targets

    def _begin_worker(self, worker: int) -> None:
        for signum in self.signals:
            signal.signal(signum, signal.SIG_IGN)


class _Once:
    """Batches for torch's loader, which may be read once."""

    def __init__(self, numbers: Iterable[Numbered]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[Numbered]:
        return iter(self.numbers)


class ExampleData(MadeImages):
    """The three splits of a `Data`; `load` creates it.

    Attributes:
        num_classes: Number of outputs that a model of the task needs; of classes, for a classification.
        channels: Size of the inputs' first dimension.
        batch_size: Examples per training batch.
        steps_per_epoch: Training batches per epoch.
        train_size: Examples in the training split, without the held-out ones.
        held_out_size: Examples in the held-out split.
        test_size: Examples in the test split.
        contents: Where the splits come from, and which examples they have.
        statistics: What is subtracted from inputs, and what they are divided by then; None where nothing is.
    """

    contents: Contents
    fixed = True
    statistics: tuple[Tensor, Tensor] | None = None

    def __init__(
        self, splits: dict[Split, tuple[Source, Tensor]], labels: dict[Split, Tensor] | None, num_classes: int,
        config: DataConfig, device: torch.device, channels_last: bool, class_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Keep the splits.

        Args:
            splits: For each split where its examples come from, and which of them, int64.
            labels: For each split its examples' class numbers, int64; None where targets are no class numbers.
            num_classes: Number of outputs of the task.
            config: The options of `--data`.
            device: The device of the batches.
            channels_last: Memory format of batches of images.
            class_names: The classes' names, by number.
        """
        self.num_classes, self.class_names, self.batch_size = num_classes, tuple(class_names), config.batch_size
        self.device, self._splits, self._labels = device, splits, labels
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self.train_size, self.held_out_size, self.test_size = (len(splits[s][1]) for s in ("train", "held_out", "test"))
        self.steps_per_epoch = self.train_size // config.batch_size
        self._mapping: Tensor | None = None
        inputs, _ = next(self.raw_batches("train"))
        self.channels, *size = inputs.shape[1:] if inputs.dim() > 1 else (1,)
        each = self.channels if len(size) == 2 else 1
        self.own = self.inputs = InputConfig(self.channels, tuple(size), (0.0,) * each, (1.0,) * each)

    @classmethod
    def load(cls, data: Data, config: DataConfig, device: torch.device, channels_last: bool, task: Task) -> ExampleData:
        """Split the examples; the held-out ones are the same in every run.

        Raises:
            UserError: an option does not fit the data, or the examples do not fit the task.
        """
        for option in ("labels", "white", "image_size", "kwargs", "augment_strength"):
            if (value := getattr(config, option)) not in (None, {}, getattr(DataConfig, option, None)):
                raise UserError(f"--data.{option} {value} is not for examples of your own; leave it out")
        found = {
            what: _source(examples, device, config.workers, what)
            for what, examples in (("train", data.train), ("held_out", data.held_out), ("test", data.test))
            if examples is not None
        }
        targets = (
            {what: class_numbers(source.targets(), what) for what, source in found.items()} if task.stratified else None
        )
        count = len(found["train"])
        if targets is not None:
            num_classes, classes = count_outputs(task, targets["train"]), int(targets["train"].max()) + 1
            check_classes(targets, classes, data.class_names)
        else:
            _, some = next(found["train"].batches([[(index, 0) for index in range(min(count, config.batch_size))]]))
            num_classes = classes = count_outputs(task, some)
        train, cut, _ = choose.split(
            count, None if targets is None else targets["train"], classes, config, held_out="held_out" in found
        )
        if config.batch_size > len(train):
            raise UserError(
                f"--data.batch_size: {config.batch_size} is more than there are training examples; give at most "
                f"{len(train)}"
            )
        chosen: dict[Split, tuple[Source, Tensor]] = {
            "train": (found["train"], train),
            "held_out": (found["train"], cut) if cut is not None else (found["held_out"], _all(found["held_out"])),
            "test": (found["test"], _all(found["test"])),
        }
        labels: dict[Split, Tensor] | None = None
        if targets is not None:
            labels = {
                "train": targets["train"][train],
                "held_out": targets["train"][cut] if cut is not None else targets["held_out"],
                "test": targets["test"],
            }
        made = cls(chosen, labels, num_classes, config, device, channels_last, data.class_names)
        if config.mean is not None or config.std is not None:
            made.own = made.inputs = with_statistics(made.inputs, config)
            made.statistics = (
                torch.tensor(made.inputs.mean, device=device),
                torch.tensor(made.inputs.std, device=device),
            )
        whole = f"from {config.name}"
        cut_off = whole if cut is None else f"cut off the training examples by {cut_by(config)}"
        shown = classes if labels is not None else None
        sources = (f"{whole}{limited_by(config)}", cut_off, whole)
        train_part, held_out_part, test_part = (
            Part(len(chosen[split][1]), shown, source, "example") for split, source in zip(chosen, sources, strict=True)
        )
        record = {what: {f"{what} examples": source.record()} for what, source in found.items()}
        made.contents = Contents(train_part, held_out_part, test_part, record=lambda: {"images": record, "bytes": {}})
        return made

    def normalise(self, inputs: Tensor) -> Tensor:
        """Inputs as the model gets them: as they are, or normalised by `--data.mean` and `--data.std` where given."""
        if self.statistics is not None:
            mean, std = (values.view(-1, *(1,) * (inputs.dim() - 2)) for values in self.statistics)
            inputs = (inputs - mean) / std
        return inputs.contiguous(memory_format=self._memory) if inputs.dim() == 4 else inputs

    def seen_by(self, inputs: InputConfig, order: Sequence[int] | None = None) -> ExampleData:
        """The same examples, labelled in a model's order if there is one; inputs are never changed."""
        seen = copy.copy(self)
        if order is not None:
            seen.relabel(order)
        return seen

    def relabel(self, order: Sequence[int]) -> None:
        """Give each class another number, `order[label]`; raises UserError where targets are no class numbers."""
        if self._labels is None:
            raise UserError("data.class_names: they are in another order than the model's; give them in its order")
        super().relabel(order)
        mapping = torch.tensor(order)
        self._mapping = mapping if self._mapping is None else mapping[self._mapping]
        self._labels = {name: mapping[labels] for name, labels in self._labels.items()}

    def train_batches(
        self, seed: int, steps: int, start: int = 0, subset: Tensor | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Training batches, numbers `start` to `steps` - 1 of a stream that depends on `seed` alone.

        An epoch's order depends on (seed, epoch), and the random numbers that an example draws on (seed, epoch,
        example). The last, incomplete batch of an epoch is dropped.

        Args:
            seed: Seed of the order and of the examples.
            steps: Number of batches in the stream.
            start: Number of the first batch to return.
            subset: int64 indices into the training split, to train on these only.
            part: `(k, n)` returns the k-th of n equal parts of each batch.

        Raises:
            ReadError: an example cannot be read.
        """
        source, examples = self._splits["train"]
        chosen = torch.arange(self.train_size) if subset is None else subset.cpu()

        def numbers() -> Iterator[Numbered]:
            for epoch, index in order.batches(chosen, self.batch_size, seed, steps, start):
                share = len(index) // part[1]
                some = index[part[0] * share : (part[0] + 1) * share] if part[1] > 1 else index
                yield [(i, derive(seed, "augment", epoch, i)) for i in examples[some].tolist()]

        return ((self.normalise(inputs), self._relabelled(targets)) for inputs, targets in source.batches(numbers()))

    def evaluation_batches(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        """The examples of a split in a fixed order; with `limit` a fixed choice, stratified for a classification."""
        return ((self.normalise(inputs), targets) for inputs, targets in self.raw_batches(split, limit))

    def raw_batches(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        """The same before the memory format of the run."""
        source, examples = self._splits[split]
        if limit is not None:
            generator, labels = order.generator("limit", split), self._labels
            mixed = (
                order.stratified(labels[split], generator)
                if labels
                else torch.randperm(len(examples), generator=generator)
            )
            examples = examples[mixed[:limit]]
        numbers = ([(i, derive(split, i)) for i in some.tolist()] for some in torch.split(examples, self.batch_size))
        return ((inputs, self._relabelled(targets)) for inputs, targets in source.batches(numbers))

    def subset(self, fraction: float, seed: int) -> Tensor:
        """Choose a random `fraction` of the training split, stratified for a classification; sorted int64 indices."""
        if self._labels is not None:
            return order.subset(self._labels["train"], fraction, self.num_classes, seed)
        count = max(1, round(order.checked(fraction) * self.train_size))
        return torch.randperm(self.train_size, generator=order.generator(seed, "subset"))[:count].sort().values

    def not_finite_at(self, split: Split, position: int, name: str = "target") -> str:
        """A line about the input or target of an example, with its number in what the user gave."""
        source, examples = self._splits[split]
        number = int(examples[position])
        return f"data.{source.what}: the {name} of example {number} is not finite; correct it, or leave it out"

    def first_not_finite(self, split: Split) -> str | None:
        begun = 0
        for inputs, targets in self.raw_batches(split):
            for name, each in (("input", inputs), ("target", targets)):
                if odd := not_finite(each):
                    return self.not_finite_at(split, begun + odd[0], name)
            begun += len(inputs)
        return None

    def known_targets(self, split: Split) -> Tensor | None:
        """The targets of a split on the CPU, where they lie in memory; None where they would have to be read."""
        source, examples = self._splits[split]
        if self._labels is not None:
            return self._labels[split]
        return source.labels.cpu()[examples] if isinstance(source, TensorPair) else None

    def _relabelled(self, targets: Tensor) -> Tensor:
        targets = targets if self._labels is None else targets.long()
        return targets if self._mapping is None else self._mapping.to(targets.device)[targets]


def not_finite(values: Tensor) -> list[int]:
    """The numbers of the examples that hold NaN or an infinite number."""
    if not values.is_floating_point() or not len(values):
        return []
    finite = values.isfinite().reshape(len(values), -1).all(1)
    return (~finite).nonzero()[:, 0].tolist() if not bool(finite.all()) else []


def count_outputs(task: Task, targets: Tensor) -> int:
    """How many outputs the task needs for these targets; raises UserError where it cannot tell."""
    try:
        return task.num_outputs(targets)
    except Exception as error:  # a plugin may raise anything
        raise UserError(
            f"--task: {type(task).__name__} cannot tell its outputs from targets {targets.dtype} of shape "
            f"{tuple(targets.shape)} ({type(error).__name__}: {first_line(error)}); change the targets or the task"
        ) from error


def _source(examples: Any, device: torch.device, workers: int, what: str) -> Source:
    """Where the examples of a split come from; raises UserError for what is neither a data set nor tensors."""
    arrays = (Tensor, np.ndarray)
    if isinstance(examples, (tuple, list)) and len(examples) == 2 and isinstance(examples[0], arrays):
        source: Source = TensorPair(examples[0], examples[1], device, what)
    elif isinstance(examples, IterableDataset) or not all(hasattr(examples, n) for n in ("__getitem__", "__len__")):
        raise UserError(
            f"data.{what} is {type(examples).__name__}, no map-style Dataset with len and [index], without which no "
            "order can be drawn by a seed, nor resumed; give one, or (inputs, targets)"
        )
    else:
        source = Examples(examples, device, min(workers, os.cpu_count() or 1), what)
    if not len(source):
        raise UserError(f"data.{what} holds no example; give one at least")
    return source


def _all(source: Source) -> Tensor:
    return torch.arange(len(source))


def targets_of(dataset: Any, read: Callable[[Tensor], Tensor]) -> Tensor:
    """The targets of all examples: the data set's `targets`, as torchvision calls them, where it gives those.

    Args:
        dataset: The data set.
        read: Reads the targets of some examples.
    """
    count = len(dataset)
    try:
        known = torch.as_tensor(getattr(dataset, "targets", ()))
    except (TypeError, ValueError, RuntimeError):  # it means something else by that name
        known = torch.tensor(0)
    if known.dim() and len(known) == count:
        some = torch.linspace(0, count - 1, min(_TRIED, count)).long()
        if torch.equal(read(some), known[some]):  # else a wrapper changes what it has inherited
            return known
    return read(torch.arange(count))


def class_numbers(targets: Tensor, what: str) -> Tensor:
    """The targets of a split as int64; raises UserError where they are no class numbers."""
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or bool((targets < 0).any()):
        raise UserError(
            f"data.{what}: targets {targets.dtype} of shape {tuple(targets.shape)} are no class numbers (whole, 0 or "
            "more); give one for each example, or another --task"
        )
    return targets.long()


def check_classes(targets: dict[str, Tensor], num_classes: int, class_names: Sequence[str]) -> None:
    """Raise UserError where a split has a class that training lacks, or the names are not as many as the classes."""
    if lacking := sorted(set(range(num_classes)) - set(targets["train"].tolist())):
        raise UserError(
            f"data.train has no example of class {lacking[0]}, but of class {num_classes - 1}; number classes from 0"
        )
    for what, labels in targets.items():
        if (most := int(labels.max())) >= num_classes:
            raise UserError(f"data.{what} has class {most}, but data.train has classes 0 to {num_classes - 1} only")
    if len(class_names) and len(class_names) != num_classes:
        raise UserError(f"data.class_names names {len(class_names)} classes, but there are {num_classes}; name each")


def _last_line(error: Exception) -> str:
    """The reason inside a worker's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else first_line(error)
