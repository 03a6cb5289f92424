"""Image folders of any size, read by worker processes with timm's loader and transforms.

A batch's images depend on its number in the stream, and an image's augmentation on (seed, epoch, image) alone. So the
number of workers, which take batches in turns, changes nothing, and a stream can start anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_loader  # type: ignore[attr-defined]
from torch import Tensor

from sparsekit.config.options import DataConfig
from sparsekit.data import folder_labels, order
from sparsekit.data.contents import Contents
from sparsekit.data.images import Normaliser, Split
from sparsekit.data.stream import Sample, Seeded, Stream, random_states_kept
from sparsekit.errors import ReadError, RunError, UserError, first_line, nearest
from sparsekit.seeds import derive

_TRAINING = (
    *("auto_augment", "color_jitter", "color_jitter_prob", "gaussian_blur_prob", "grayscale_prob", "hflip", "vflip"),
    *("ratio", "re_count", "re_mode", "re_prob", "scale", "train_crop_mode"),
)
_SIZES = 1_000
_READ_AHEAD = 2  # batches that each of torch's workers reads ahead, images as uint8
_ALWAYS = ("crop_mode", "crop_pct", "interpolation", "mean", "std")


class FolderData:
    """The three splits of an image folder, read from files batch by batch; the same interface as `ImageData`.

    Attributes:
        num_classes: Number of classes; labels are from 0 to `num_classes` - 1, in the natural order of folder names.
        channels: Number of channels, 3; grey images are converted.
        image_size: Side of the images in pixels.
        mean: Mean of each channel that normalisation subtracts, black 0 to white 1.
        std: Standard deviation of each channel that normalisation divides by, black 0 to white 1.
        batch_size: Images per batch.
        steps_per_epoch: Training batches per epoch.
        train_size: Images in the training split, without the held-out ones.
        held_out_size: Images in the held-out split.
        test_size: Images in the test split.
        normalise: Subtracts `mean` and divides by `std`.
        contents: Where the splits come from, and which images they have.
    """

    channels = 3
    contents: Contents

    def __init__(
        self,
        samples: dict[Split, list[Sample]],
        *,
        num_classes: int,
        image_size: int,
        batch_size: int,
        workers: int,
        augment: bool,
        kwargs: dict[str, Any],
        device: torch.device,
        channels_last: bool,
    ) -> None:
        """Keep the paths and labels of the images; no image is read yet.

        Args:
            samples: For each split, path and label of each image.
            num_classes: Number of classes.
            image_size: Side of the images in pixels.
            batch_size: Images per batch.
            workers: Number of processes that read images; 0 reads in this process.
            augment: Whether training images are augmented.
            kwargs: Further arguments of `timm.data.create_loader`.
            device: The device of the batches.
            channels_last: Memory format of the batches.
        """
        self.num_classes, self.image_size, self.batch_size = num_classes, image_size, batch_size
        self.device, self._workers, self._augment = device, workers, augment
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self._samples = samples
        self._labels = {name: torch.tensor([label for _, label in part]) for name, part in samples.items()}
        self._kwargs = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, **kwargs}
        self.mean, self.std = (tuple(float(value) for value in self._kwargs[key]) for key in ("mean", "std"))
        self.normalise = Normaliser(self.mean, self.std, device, self._memory)
        self.train_size, self.held_out_size, self.test_size = (len(samples[s]) for s in ("train", "held_out", "test"))
        self.steps_per_epoch = self.train_size // batch_size

    @classmethod
    def load(cls, config: DataConfig, device: torch.device, channels_last: bool) -> FolderData:
        """List and split the images in `--data.root`, without opening any.

        The held-out images are the same in every run: they depend on `--data.held_out`, not on `--seed`.

        Raises:
            UserError: the folders are missing or lack images, or an option does not fit them.
        """
        listing = folder_labels.list_images(config)
        train, held_out, test, classes = listing.train, listing.held_out, listing.test, listing.classes
        labels = torch.tensor([label for _, label in train])
        kept = torch.arange(len(train))
        if held_out is None:
            kept, cut = order.cut(labels, len(classes), config.held_out)
            held_out = [train[i] for i in cut.tolist()]
        if test is None:
            inner, cut = order.cut(labels[kept], len(classes), config.held_out, "test")
            kept, test = kept[inner], [train[i] for i in kept[cut].tolist()]
        if config.batch_size > len(kept):
            raise UserError(
                f"--data.batch_size: {config.batch_size} is more than there are training images; "
                f"give at most {len(kept)} for {config.root}"
            )
        for key in config.kwargs:
            if key not in (known := [*_TRAINING, *_ALWAYS]):
                hint = nearest(key, known) or f" Choose from {', '.join(sorted(known))}."
                raise UserError(f"--data.kwargs: {key!r} is not an argument of timm's loader that can be set.{hint}")
        try:
            data = cls(
                {"train": [train[i] for i in kept.tolist()], "held_out": held_out, "test": test},
                num_classes=len(classes),
                image_size=config.image_size or 224,
                batch_size=config.batch_size,
                workers=config.workers,
                augment=config.augment,
                kwargs=config.kwargs,
                device=device,
                channels_last=channels_last,
            )
            for training in (True, False):
                data._loader(Stream([], lambda _: [], 0, 0), training, 1)
        except Exception as error:  # timm may raise anything for bad arguments
            raise UserError(
                f"--data.kwargs {config.kwargs}: timm's transforms refuse them: {first_line(error)}"
            ) from error
        workers = min(config.workers, _cores(), data.steps_per_epoch)
        _check_shared_memory(workers, config.batch_size * 3 * data.image_size**2)
        record = partial(_record, listing.root, classes, data._samples)
        data.contents = Contents(*listing.parts(config.held_out), listing.notes, record)
        return data

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
            Normalised images, float32 [B, 3, S, S], and labels, int64 [B].

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

        stream = Stream(self._samples["train"], batch, start, steps)
        loader = self._loader(stream, True, share)
        if loader.random_erasing is not None:  # timm erases in whole batches, in this process
            own = derive(seed, "part", part[0]) if part[0] else seed
            loader.random_erasing = Seeded(loader.random_erasing, own, start)
        return self._batches(loader)

    def evaluation_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split in a fixed order, resized and cropped to the centre.

        Args:
            split: The split.
            limit: Return a fixed, stratified choice of this many images; None returns all.

        Yields:
            Normalised images, float32 [B, 3, S, S] with B at most `batch_size`, and labels, int64 [B].

        Raises:
            RunError: an image cannot be read.
        """
        labels = self._labels[split]
        chosen = torch.arange(len(labels))
        if limit is not None and limit < len(labels):
            chosen = order.stratified(labels, order.generator("limit", split))[:limit]

        def batch(number: int) -> list[tuple[int, int | None]]:
            part = chosen[number * self.batch_size : (number + 1) * self.batch_size]
            return [(index, None) for index in part.tolist()]

        stream = Stream(self._samples[split], batch, 0, -(-len(chosen) // self.batch_size))
        return self._batches(self._loader(stream, False, self.batch_size))

    def raw_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `evaluation_batches` before normalisation.

        Yields:
            Images, float32 [B, C, S, S] with values from 0 to 255, and labels, int64 [B].
        """
        for images, labels in self.evaluation_batches(split, limit):
            yield self.normalise.undo(images), labels

    def subset(self, fraction: float, seed: int) -> Tensor:
        """Choose a random, stratified `fraction` of the training split with at least one image of each class.

        Returns:
            Sorted int64 indices on the CPU.

        Raises:
            UserError: `fraction` is not above 0 and at most 1.
        """
        return order.subset(self._labels["train"], fraction, self.num_classes, seed)

    def _loader(self, stream: Stream, training: bool, batch_size: int) -> Any:
        kwargs = {key: value for key, value in self._kwargs.items() if training or key in _ALWAYS}
        if not training and kwargs.get("interpolation") == "random":
            kwargs["interpolation"] = "bilinear"
        return create_loader(
            stream,  # type: ignore[arg-type]
            self.image_size,
            batch_size,
            is_training=training,
            no_aug=not self._augment,
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
            with random_states_kept(self.device if loader.random_erasing else None):
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
                    trouble = f"a process that reads images ended: {first_line(error)}"
            if trouble:
                raise ReadError(trouble)
            yield images.contiguous(memory_format=self._memory), labels


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raise UserError if `/dev/shm` cannot hold what the workers read ahead; they would hang, or die of SIGBUS."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    needed = workers * _READ_AHEAD * batch_bytes * (int(ranks) if ranks.isdigit() else 1)
    if not needed or not os.path.isdir("/dev/shm"):
        return
    found = os.statvfs("/dev/shm")
    if (free := found.f_bavail * found.f_frsize) < needed:
        raise UserError(
            f"--data.workers {workers} needs {decimal(needed)} of shared memory; /dev/shm has {decimal(free)} free; "
            "give --data.workers 0 or fewer, a smaller --data.batch_size, or more of it (docker run --shm-size 2g)"
        )


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
