"""Image folders of any size, read by worker processes with timm's loader and transforms.

A batch's images depend on its number in the stream, and an image's augmentation on (seed, epoch, image) alone. So the
number of workers, which take batches in turns, changes nothing, and a stream can start anywhere.
"""

from __future__ import annotations

import copy
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import Tensor

from sparsekit.config.options import DataConfig
from sparsekit.data import choose, folder_labels, order
from sparsekit.data.contents import Contents
from sparsekit.data.decode import read_rgb
from sparsekit.data.images import Normaliser, Split
from sparsekit.data.inputs import InputConfig, MadeImages, with_statistics
from sparsekit.data.stream import Read, Sample, Seeded, Stream, random_states_kept, without_alarm
from sparsekit.data.strength import scaled
from sparsekit.errors import ReadError, RunError, UserError, first_line, nearest
from sparsekit.seeds import derive

_TRAINING = (
    *("auto_augment", "color_jitter", "color_jitter_prob", "gaussian_blur_prob", "grayscale_prob", "hflip", "vflip"),
    *("ratio", "re_count", "re_mode", "re_prob", "scale", "train_crop_mode"),
)
_SIZES = 1_000
_READ_AHEAD = 2  # batches that each of torch's workers reads ahead, images as uint8
_ALWAYS = ("crop_mode", "crop_pct", "interpolation", "mean", "std")
_CROP_MODES = ("center", "squash", "border")


class FolderData(MadeImages):
    """The three splits of an image folder, read from files batch by batch; the same interface as `ImageData`.

    Attributes:
        num_classes: Number of classes; labels are from 0 to `num_classes` - 1, in the natural order of folder names.
        channels: Number of channels, 3; grey images are converted.
        batch_size: Images per batch.
        steps_per_epoch: Training batches per epoch.
        train_size: Images in the training split, without the held-out ones.
        held_out_size: Images in the held-out split.
        test_size: Images in the test split.
        normalise: Subtracts `inputs.mean` and divides by `inputs.std`.
        contents: Where the splits come from, and which images they have.
    """

    channels = 3
    cropped = True
    contents: Contents

    def __init__(
        self,
        samples: dict[Split, list[Sample]],
        *,
        class_names: Sequence[str],
        image_size: int,
        batch_size: int,
        workers: int,
        augment: bool,
        strength: float = 1.0,
        kwargs: dict[str, Any],
        device: torch.device,
        channels_last: bool,
        read: Mapping[Split, Read],
    ) -> None:
        """Keep where the images are, and their labels; no image is read yet.

        Args:
            samples: For each split, place and label of each image.
            class_names: The classes' names, by label.
            image_size: Side of the images in pixels.
            batch_size: Images per batch.
            workers: Number of processes that read images; 0 reads in this process.
            augment: Whether training images are augmented.
            strength: How strong the augmentation is, 0 to 4.
            kwargs: Further arguments of `timm.data.create_loader`.
            device: The device of the batches.
            channels_last: Memory format of the batches.
            read: For each split, what reads the image at a place as RGB.
        """
        self.class_names, self.num_classes, self.batch_size = tuple(class_names), len(class_names), batch_size
        self.device, self._workers, self._augment, self.strength = device, workers, augment, strength
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self._samples, self._read = samples, read
        self._labels = {name: torch.tensor([label for _, label in part]) for name, part in samples.items()}
        self._kwargs = kwargs
        self._make_as((image_size, image_size))
        self.own = self.inputs
        self.train_size, self.held_out_size, self.test_size = (len(samples[s]) for s in ("train", "held_out", "test"))
        self.steps_per_epoch = self.train_size // batch_size

    @classmethod
    def load(cls, config: DataConfig, device: torch.device, channels_last: bool) -> FolderData:
        """List and split the images in `--data.root`, opening a few of them at most.

        The held-out images are the same in every run: they depend on `--data.held_out`, not on `--seed`.

        Raises:
            UserError: the folders are missing or lack images, or an option does not fit them.
        """
        listing = folder_labels.list_images(config)
        train, held_out, test = listing.train, listing.held_out, listing.test
        if config.fold is not None:
            train, held_out = [*train, *(held_out or ())], None
        labels = torch.tensor([label for _, label in train])
        kept, cut, tests = choose.split(
            len(train), labels, len(listing.classes), config, held_out=held_out is not None, test=test is not None
        )
        samples: dict[Split, list[Sample]] = {
            "train": [train[i] for i in kept.tolist()],
            "held_out": held_out or [train[i] for i in ([] if cut is None else cut.tolist())],
            "test": test or [train[i] for i in ([] if tests is None else tests.tolist())],
        }
        read = dict.fromkeys(samples, partial(read_rgb, white=config.white))
        record = partial(_record, listing.root, listing.classes, samples)
        contents = Contents(*listing.parts(config), listing.notes, record)
        return cls.of(samples, read, listing.classes, contents, config, device, channels_last)

    @classmethod
    def of(
        cls, samples: dict[Split, list[Sample]], read: Mapping[Split, Read], class_names: Sequence[str],
        contents: Contents, config: DataConfig, device: torch.device, channels_last: bool,
    ) -> FolderData:  # fmt: skip
        """The images of three splits, as the options say.

        Raises:
            UserError: an option does not fit them.
        """
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # only now: it costs 3 s

        if config.batch_size > len(samples["train"]):
            raise UserError(
                f"--data.batch_size: {config.batch_size} is more than there are training images; "
                f"give at most {len(samples['train'])} for {config.root or config.name}"
            )
        for key in config.kwargs:
            if key not in (known := [*_TRAINING, *_ALWAYS]):
                hint = nearest(key, known) or f" Choose from {', '.join(sorted(known))}."
                raise UserError(f"--data.kwargs: {key!r} is not an argument of timm's loader that can be set.{hint}")
        size = config.image_size or 224
        plain = InputConfig(cls.channels, (size, size), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        given = with_statistics(plain, config)
        try:
            data = cls(
                samples,
                class_names=class_names,
                image_size=size,
                batch_size=config.batch_size,
                workers=config.workers,
                augment=config.augment,
                strength=config.augment_strength,
                kwargs={"mean": given.mean, "std": given.std, **config.kwargs},
                device=device,
                channels_last=channels_last,
                read=read,
            )
            data._try_transforms()
        except UserError:
            raise
        except Exception as error:  # timm may raise anything for bad arguments
            raise UserError(
                f"--data.kwargs {config.kwargs}: timm's transforms refuse them: {first_line(error)}"
            ) from error
        data._check_shared_memory()
        data.contents = contents
        return data

    def seen_by(self, inputs: InputConfig, order: Sequence[int] | None = None) -> FolderData:
        """The same images as a model sees them: made as it says, in training too, and labelled in its order.

        Args:
            inputs: How the model's images are made.
            order: The model's label of each class of this data set; None keeps the labels.

        Raises:
            UserError: timm's transforms cannot make them.
        """
        seen = copy.copy(self)
        changes = [name for name in self.inputs.differing(inputs) if name in _ALWAYS]
        seen._kwargs = self._kwargs | {name: getattr(inputs, name) for name in changes}
        if self.inputs.differing(inputs):
            try:
                seen._make_as(inputs.height_and_width)
                seen._try_transforms()
            except Exception as error:  # timm may raise anything
                raise UserError(
                    f"timm's transforms refuse {inputs.text(self.inputs.differing(inputs))}: {first_line(error)}; "
                    "correct config.json"
                ) from error
            seen._check_shared_memory()
        if order is not None:
            seen.relabel(order)
        return seen

    def _changed(self) -> None:
        self._try_transforms()

    def _check_shared_memory(self) -> None:
        """Raise UserError if `/dev/shm` cannot hold what the workers read ahead; they would hang, or die of SIGBUS."""
        workers, ranks = min(self._workers, _cores(), self.steps_per_epoch), os.environ.get("LOCAL_WORLD_SIZE", "1")
        # one batch more is in use; images and labels each begin a page of their own
        batch = self.batch_size * self.channels * math.prod(self.inputs.size) + 2 * mmap.PAGESIZE
        needed = (workers * _READ_AHEAD + 1) * batch * (int(ranks) if ranks.isdigit() else 1)
        if not workers or not os.path.isdir("/dev/shm"):
            return
        found = os.statvfs("/dev/shm")
        if (free := found.f_bavail * found.f_frsize) < needed:
            raise UserError(
                f"--data.workers {workers} needs {decimal(needed)} of shared memory, and {decimal(free)} are free; "
                "give --data.workers 0 or fewer, a smaller batch, or a larger /dev/shm (docker run --shm-size 2g)"
            )

    def relabel(self, order: Sequence[int]) -> None:
        """Give each class another label, `order[label]`."""
        super().relabel(order)
        self._samples = {name: [(path, order[label]) for path, label in part] for name, part in self._samples.items()}
        self._labels = {name: torch.tensor(order)[labels] for name, labels in self._labels.items()}

    def train_batches(
        self, seed: int, steps: int, start: int = 0, subset: Tensor | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented training batches, numbers `start` to `steps` - 1 of a stream that depends on `seed` alone.

        An epoch's last, incomplete batch is dropped. The process' random states do not change.

        Args:
            seed: Seed of the order and the augmentation.
            steps: Number of batches in the stream.
            start: Number of the first batch to return.
            subset: int64 indices into the training split, to train on these only. If they are fewer than `batch_size`,
                every batch holds them all.
            part: `(k, n)` reads only the k-th of n equal parts of each batch, augmented as in the full batch except
                for random erasing; images left over by the division are dropped.

        Yields:
            Normalised images, float32 [B, 3, H, W], and labels, int64 [B].

        Raises:
            RunError: an image cannot be read.
        """
        chosen = torch.arange(self.train_size) if subset is None else subset.cpu()
        size = min(self.batch_size, len(chosen))
        per_epoch = len(chosen) // size
        share = size // part[1] if part[1] > 1 else size
        shuffled: dict[int, Tensor] = {}  # the order of the current epoch

        def batch(number: int) -> list[tuple[int, int | None]]:
            epoch, position = divmod(number, per_epoch)
            if epoch not in shuffled:
                shuffled.clear()
                shuffled[epoch] = chosen[torch.randperm(len(chosen), generator=order.generator(seed, "order", epoch))]
            first = position * size + part[0] * share
            indices = shuffled[epoch][first : first + share].tolist()
            return [(index, derive(seed, "augment", epoch, index)) for index in indices]

        stream = Stream(self._samples["train"], self._read["train"], batch, start, steps)
        loader = self._loader(stream, True, share)
        if loader.random_erasing is not None:  # timm erases in whole batches, in this process
            own = derive(seed, "part", part[0]) if part[0] else seed
            loader.random_erasing = Seeded(loader.random_erasing, own, start)
        return self._batches(loader)

    def evaluation_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split in a fixed order, resized and cropped to the centre.

        Args:
            split: The split.
            limit: Return a fixed, stratified choice of this many images, in an order in which every batch has its share
                of each class; None returns all, in the order of the files.

        Yields:
            Normalised images, float32 [B, 3, H, W] with B at most `batch_size`, and labels, int64 [B].

        Raises:
            RunError: an image cannot be read.
        """
        labels = self._labels[split]
        chosen = torch.arange(len(labels))
        if (
            limit is not None
        ):  # even of all: files come class by class, and BatchNorm would be measured on single classes
            chosen = order.stratified(labels, order.generator("limit", split))[:limit]

        def batch(number: int) -> list[tuple[int, int | None]]:
            part = chosen[number * self.batch_size : (number + 1) * self.batch_size]
            return [(index, None) for index in part.tolist()]

        stream = Stream(self._samples[split], self._read[split], batch, 0, -(-len(chosen) // self.batch_size))
        return self._batches(self._loader(stream, False, self.batch_size))

    def raw_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `evaluation_batches` before normalisation.

        Yields:
            Images, float32 [B, C, H, W] with values from 0 to 255, and labels, int64 [B].
        """
        for images, labels in self.evaluation_batches(split, limit):
            yield self.normalise.undo(images), labels

    def known_targets(self, split: Split) -> Tensor:
        """The labels of a split on the CPU."""
        return self._labels[split]

    def subset(self, fraction: float, seed: int) -> Tensor:
        """Choose a random, stratified `fraction` of the training split with at least one image of each class.

        Returns:
            Sorted int64 indices on the CPU.

        Raises:
            UserError: `fraction` is not above 0 and at most 1.
        """
        return order.subset(self._labels["train"], fraction, self.num_classes, seed)

    def _make_as(self, size: tuple[int, int]) -> None:
        """Make images of a size, normalised and cropped as the arguments of timm's loader say.

        Raises:
            ValueError: mean and std do not have a value for each channel, or one for all.
        """
        from timm.data import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT  # only now: it costs 3 s

        kwargs, statistics = self._kwargs, dict[str, tuple[float, ...]]()
        for key in ("mean", "std"):
            values = tuple(float(value) for value in kwargs[key])
            if len(values) not in (1, self.channels):
                raise ValueError(f"{key} has {len(values)} values for {self.channels} channels")
            statistics[key] = values * (self.channels // len(values))
        if (mode := kwargs.get("crop_mode") or DEFAULT_CROP_MODE) not in _CROP_MODES:
            raise ValueError(f"crop_mode is {mode!r}, not one of {', '.join(_CROP_MODES)}")
        self._kwargs = kwargs | statistics
        shown = kwargs.get("interpolation") or "bilinear"
        self.inputs = InputConfig(
            self.channels,
            size,
            **statistics,
            crop_pct=kwargs.get("crop_pct") or DEFAULT_CROP_PCT,
            crop_mode=mode,
            interpolation="bilinear" if shown == "random" else shown,
        )
        self.normalise = Normaliser(self.inputs.mean, self.inputs.std, self.device, self._memory)

    def _try_transforms(self) -> None:
        """Make the transforms of training and of tests; raises whatever timm raises."""
        for training in (True, False):
            self._loader(Stream([], self._read["test"], lambda _: [], 0, 0), training, 1)

    def _loader(self, stream: Stream, training: bool, batch_size: int) -> Any:
        from timm.data import create_loader  # type: ignore[attr-defined]  # only now: it costs 3 s

        augments = training and self._augment and self.strength > 0.0
        given = scaled(self._kwargs, self.strength) if augments else self._kwargs
        kwargs = {key: value for key, value in given.items() if training or key in _ALWAYS}
        if not training and kwargs.get("interpolation") == "random":
            kwargs["interpolation"] = "bilinear"
        return create_loader(
            stream,  # type: ignore[arg-type]
            self.image_size if self.inputs.square else (self.channels, *self.inputs.height_and_width),
            batch_size,
            is_training=training,
            no_aug=not augments,
            num_workers=min(self._workers, _cores(), stream.stop - stream.start),
            persistent_workers=False,
            pin_memory=self.device.type == "cuda",
            device=self.device,
            **kwargs,
        )

    def _batches(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(loader)
        while True:
            trouble = ""
            with random_states_kept(self.device if loader.random_erasing else None), without_alarm():
                try:
                    images, labels = next(batches)
                except StopIteration:
                    return
                except RunError as error:  # the message from a worker contains its traceback
                    error.__traceback__ = None  # a traceback would keep the loader and its workers alive
                    trouble = str(error).strip().splitlines()[-1].rpartition("RunError: ")[2]
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    error.__traceback__ = None
                    reason = first_line(error).rstrip(". ")
                    way_out = "where memory ran out, give fewer --data.workers; go on with --resume"
                    trouble = f"a process that reads images ended: {reason}; {way_out}"
            if trouble:
                raise ReadError(trouble)
            yield images.contiguous(memory_format=self._memory), labels


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _record(root: Path, classes: Sequence[str], samples: Mapping[Split, Sequence[Sample]]) -> dict[str, Any]:
    """The images of each split, with paths relative to the root, and the sizes of up to `_SIZES` evenly spaced ones.

    Not of all: a file's size may take a millisecond on a network's file system.
    """
    start = os.path.join(root, "")
    images = {split: {path.removeprefix(start): label for path, label in part} for split, part in samples.items()}
    some = [path for part in images.values() for path in list(part)[:: 1 + len(part) // _SIZES]]
    return {"classes": list(classes), "images": images, "bytes": {path: _bytes(root / path) for path in some}}


def _bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
