"""Small images held on the device as tensors, augmented in batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sparsekit.config.options import DataConfig
from sparsekit.data import choose, order
from sparsekit.data.contents import Contents
from sparsekit.data.files import Images, RawData, read
from sparsekit.data.inputs import InputConfig, MadeImages, with_statistics
from sparsekit.errors import UserError

Split = Literal["train", "held_out", "test"]

_EVALUATION_BATCH = 500


class ImageData(MadeImages):
    """The three splits of a data set on one device; `load` creates it from options.

    Augmentation follows torchvision's `RandomCrop(image_size, padding=round(image_size / 8))`, which pads with black
    before normalisation, and then `RandomHorizontalFlip` for data sets whose labels a flip keeps. The padding is
    multiplied by the strength, as are flips up to strength 1.

    Attributes:
        num_classes: Number of classes; labels are from 0 to `num_classes` - 1.
        channels: Number of channels, 1 or 3.
        batch_size: Images per training batch.
        steps_per_epoch: Training batches per epoch.
        train_size: Images in the training split, without the held-out ones.
        held_out_size: Images in the held-out split.
        test_size: Images in the test split.
        normalise: Normalises images to float32 with mean 0 and standard deviation 1 over the training split, or as a
            model's config.json says.
        contents: Where the splits come from, and which images they have.
    """

    contents: Contents

    def __init__(
        self,
        splits: dict[Split, tuple[Tensor, Tensor]],
        *,
        num_classes: int,
        batch_size: int,
        shift: int,
        flip: bool,
        strength: float = 1.0,
        device: torch.device,
        channels_last: bool,
        class_names: Sequence[str] = (),
        at: Callable[[tuple[int, int]], ImageData] | None = None,
    ) -> None:
        """Move the splits to the device.

        Args:
            splits: For each split its images, uint8 [N, C, H, W], and labels, int64 [N].
            num_classes: Number of classes.
            batch_size: Images per training batch, at most the size of the training split.
            shift: Largest random shift in pixels at strength 1; 0 for none.
            flip: Whether to flip half of the training images.
            strength: How strong the augmentation is, 0 to 4.
            device: The device of images, labels and batches.
            channels_last: Memory format of the batches.
            class_names: The classes' names, by label.
            at: Reads the same data set again with images of another height and width.
        """
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.batch_size = batch_size
        self.device = device
        self._unit, self._flip, self.strength = shift, flip, strength
        self._memory = torch.channels_last if channels_last else torch.contiguous_format

        self._at = at

        train = splits["train"][0]
        self.train_size, self.channels, *size = train.shape
        self.held_out_size = len(splits["held_out"][0])
        self.test_size = len(splits["test"][0])
        self.steps_per_epoch = self.train_size // batch_size
        self.own = self.inputs = InputConfig(self.channels, (size[0], size[1]), *_statistics(train))
        self.normalise = Normaliser(self.inputs.mean, self.inputs.std, device, self._memory)

        self._train = _Bordered(train, self._shift, device)
        self._images = {name: images.to(device) for name, (images, _) in splits.items() if name != "train"}
        self._labels = {name: labels.to(device) for name, (_, labels) in splits.items()}
        self._cpu_labels = {name: labels.cpu() for name, (_, labels) in splits.items()}  # for random choices

    @classmethod
    def load(
        cls, config: DataConfig, device: torch.device, channels_last: bool, size: tuple[int, int] | None = None
    ) -> ImageData:
        """Read the data set of `--data`, split and resize it, and move it to the device.

        The held-out images are the same in every run: they depend on `--data.held_out`, not on `--seed`.

        Args:
            config: The options of `--data`.
            device: The device of its batches.
            channels_last: Memory format of its batches.
            size: Height and width in pixels; by default as the options say.

        Raises:
            UserError: an option does not fit the data, or files are missing or damaged.
        """
        if not 0 < config.held_out < 1:
            raise UserError(f"--data.held_out: {config.held_out} is not between 0 and 1; give a fraction such as 0.1")
        if config.batch_size < 1:
            raise UserError(f"--data.batch_size: {config.batch_size} is too small; give at least 1")
        raw = read(config.name, config.root)
        side = raw.side if config.image_size is None else config.image_size
        if side < 4:
            raise UserError(f"--data.image_size: {side} is too small; give at least 4 pixels")
        size = size or (side, side)
        train, held_out = _split(raw, config)
        if config.batch_size > len(train):
            raise UserError(
                f"--data.batch_size: {config.batch_size} is more than there are training images; "
                f"give at most {len(train)} for {config.name}"
            )
        images, labels = resized(raw.train_images, size), torch.tensor(raw.train_labels)
        data = cls(
            {
                "train": (images[train], labels[train]),
                "held_out": (images[held_out], labels[held_out]),
                "test": (resized(raw.test_images, size), torch.tensor(raw.test_labels)),
            },
            num_classes=raw.num_classes,
            batch_size=config.batch_size,
            shift=round(min(size) / 8) if config.augment else 0,
            flip=config.augment and raw.flip,
            strength=config.augment_strength,
            device=device,
            channels_last=channels_last,
            class_names=raw.class_names,
            at=lambda size: cls.load(config, device, channels_last, size),
        )
        data.own = with_statistics(data.inputs, config)
        data = data.seen_by(data.own)
        counts = (len(train), len(held_out), len(raw.test_images))
        record = raw.record()  # now, so that the arrays need not be kept
        data.contents = Contents.of_published(
            config.name, counts, raw.num_classes, config, cut=raw.held_out is None, record=lambda: record
        )
        return data

    def shortened(self, count: int) -> ImageData:
        """The same training images, and no more than the first `count` of the other splits."""
        short = copy.copy(self)
        short._images = {split: images[:count] for split, images in self._images.items()}
        for labels in ("_labels", "_cpu_labels"):
            held = getattr(self, labels)
            setattr(short, labels, {split: held[split][: None if split == "train" else count] for split in held})
        short.held_out_size, short.test_size = len(short._images["held_out"]), len(short._images["test"])
        return short

    def seen_by(self, inputs: InputConfig, order: Sequence[int] | None = None) -> ImageData:
        """The same data set as a model sees it: in its size and with its normalisation, labelled in its order.

        Images are shown whole, so that of the crop nothing holds.

        Args:
            inputs: How the model's images are made.
            order: The model's label of each class of this data set; None keeps the labels.
        """
        seen = copy.copy(self)
        if inputs.size != self.inputs.size and self._at is not None:
            seen = self._at(inputs.height_and_width)
            seen.own = self.own
            if self.class_order is not None:
                seen.relabel(self.class_order)
        if (inputs.mean, inputs.std) != (seen.inputs.mean, seen.inputs.std):
            seen.normalise = Normaliser(inputs.mean, inputs.std, self.device, self._memory)
        seen.inputs = InputConfig(self.channels, seen.inputs.size, inputs.mean, inputs.std)
        if order is not None:
            seen.relabel(order)
        return seen

    def relabel(self, order: Sequence[int]) -> None:
        """Give each class another label, `order[label]`."""
        super().relabel(order)
        mapping = torch.tensor(order)
        self._cpu_labels = {name: mapping[labels] for name, labels in self._cpu_labels.items()}
        self._labels = {name: labels.to(self.device) for name, labels in self._cpu_labels.items()}

    def train_batches(
        self, seed: int, steps: int, start: int = 0, subset: Tensor | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented training batches, numbers `start` to `steps` - 1 of a stream that depends on `seed` alone.

        An epoch's order depends on (seed, epoch) and a batch's augmentation on (seed, batch number), so a stream that
        starts in the middle gives the same bits. An epoch's last, incomplete batch is dropped. Nothing waits for the
        device.

        Args:
            seed: Seed of the order and the augmentation.
            steps: Number of batches in the stream.
            start: Number of the first batch to return.
            subset: int64 indices into the training split, to train on these only. If they are fewer than `batch_size`,
                every batch holds them all.
            part: `(k, n)` returns the k-th of n equal parts of each batch, augmented as in the full batch; images left
                over by the division are dropped.

        Yields:
            Normalised images, float32 [B, C, H, W], and labels, int64 [B].
        """
        chosen = torch.arange(self.train_size) if subset is None else subset.cpu()
        batches = order.batches(chosen, self.batch_size, seed, steps, start, self._to_device)
        for step, (_, index) in enumerate(batches, start):
            size = len(index) // part[1]
            share = slice(part[0] * size, (part[0] + 1) * size) if part[1] > 1 else slice(None)
            yield self.normalise(self._augmented(index, seed, step, share)), self._labels["train"][index[share]]

    def evaluation_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split in a fixed order, without augmentation; the last batch may be smaller.

        Args:
            split: The split.
            limit: Return a fixed, stratified choice of this many images; None returns all.

        Yields:
            Normalised images, float32 [B, C, H, W] with B at most 500, and labels, int64 [B].
        """
        for images, labels in self.raw_batches(split, limit):
            yield self.normalise(images), labels

    def raw_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `evaluation_batches` before normalisation.

        Yields:
            Images, uint8 [B, C, H, W], and labels, int64 [B].
        """
        images = self._train.crops(0)[:, 0, 0] if split == "train" else self._images[split]
        labels = self._labels[split]
        some = None
        if limit is not None and limit < len(labels):
            some = self._to_device(order.stratified(self._cpu_labels[split], order.generator("limit", split))[:limit])
        count = len(labels) if some is None else len(some)
        for first in range(0, count, _EVALUATION_BATCH):
            part = slice(first, min(first + _EVALUATION_BATCH, count))
            index = part if some is None else some[part]
            yield images[index], labels[index]

    def known_targets(self, split: Split) -> Tensor:
        """The labels of a split on the CPU."""
        return self._cpu_labels[split]

    def subset(self, fraction: float, seed: int) -> Tensor:
        """Choose a random, stratified `fraction` of the training split with at least one image of each class.

        Returns:
            Sorted int64 indices on the CPU.

        Raises:
            UserError: `fraction` is not above 0 and at most 1.
        """
        return order.subset(self._cpu_labels["train"], fraction, self.num_classes, seed)

    def _augmented(self, index: Tensor, seed: int, step: int, part: slice) -> Tensor:
        """A part of the training images `index`, uint8 [B, C, S, S], shifted and flipped as in the full batch."""
        shift, crops = self._shift, self._train.crops(self._shift)
        if not shift and not (self._flip and self.strength):
            return crops[index[part], 0, 0]
        generator = order.generator(seed, "augment", step)
        corner = torch.randint(2 * shift + 1, (2, len(index)), generator=generator)
        flipped = torch.randint(2, (1, len(index)), generator=generator)
        if less := shift - self.strength * self._unit:  # between two whole shifts each image takes one of them
            smaller = 1 + torch.randint(2 * shift - 1, (2, len(index)), generator=generator)
            corner = torch.where(torch.rand(1, len(index), generator=generator) < less, smaller, corner)
        if self.strength < 1.0:
            flipped *= torch.rand(1, len(index), generator=generator) < self.strength
        top, left, flip = self._to_device(torch.cat([corner, flipped])[:, part])  # one copy to the device per step
        images = crops[index[part], top, left]
        return torch.where(flip.bool()[:, None, None, None], images.flip(-1), images) if self._flip else images

    @property
    def _shift(self) -> int:
        """Largest random shift in pixels."""
        return math.ceil(self.strength * self._unit)

    def _changed(self) -> None:
        self._train.crops(self._shift)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # copies from pageable memory may block


class _Bordered:
    """Images uint8 [N, C, H, W] on the device, with as much black around as the largest shift so far needs."""

    def __init__(self, images: Tensor, border: int, device: torch.device) -> None:
        self._size, self._border = images.shape[2:], border
        self._padded = functional.pad(images, (border,) * 4).to(device)

    def crops(self, shift: int) -> Tensor:
        """A view [N, 2 * shift + 1, 2 * shift + 1, C, H, W]: indexing it by image, row and column crops a batch."""
        if more := max(shift - self._border, 0):
            self._padded, self._border = functional.pad(self._padded, (more,) * 4), self._border + more
        inside = slice(self._border - shift, self._border + shift + 1)
        height, width = self._size
        return self._padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)[:, inside, inside]


class Normaliser:
    """Normalises images [B, C, S, S] with values from 0 to 255 to float32.

    Args:
        mean: Mean of each channel to subtract, white being 1.
        std: Standard deviation of each channel to divide by, white being 1.
        device: The device of the images.
        memory: Memory format of the result.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, memory: torch.memory_format
    ) -> None:
        self._mean = torch.tensor([255 * value for value in mean], device=device)[:, None, None]
        self._scale = torch.tensor([1 / (255 * value) for value in std], device=device)[:, None, None]
        self._memory = memory

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised copies of the images."""
        return images.to(torch.float32, memory_format=self._memory, copy=True).sub_(self._mean).mul_(self._scale)

    def undo(self, images: Tensor) -> Tensor:
        """The images before normalisation, float32 with values from 0 to 255."""
        return (images / self._scale + self._mean).clamp_(0.0, 255.0)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel of uint8 images [N, C, S, S], white being 1."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(share @ values)
        means.append(mean)
        # At least one grey level, so that a constant channel can be normalised.
        stds.append(max(float(share @ (values - mean).square()) ** 0.5, 1 / 255))
    return tuple(means), tuple(stds)


def resized(images: Images, size: tuple[int, int]) -> Tensor:
    """Resize images [N, H, W, C] to a uint8 tensor [N, C, *size]."""
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    if tuple(tensor.shape[2:]) == size:
        return tensor
    from torchvision.transforms.v2 import functional as transforms  # costs 1.6 s

    # In chunks, as some CPUs resize in float32, which takes four times the memory.
    parts = tensor.chunk(1 + len(tensor) // 1000)
    return torch.cat([transforms.resize(part, list(size), antialias=True) for part in parts])


def _split(raw: RawData, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Sorted indices of the training images to train on, and of those held out."""
    labels, own = torch.tensor(raw.train_labels), raw.held_out or 0
    if own and config.fold is None:
        left = len(labels) - own
        train, _, _ = choose.split(left, labels[:left], raw.num_classes, config, held_out=True)
        return train, torch.arange(left, len(labels))
    train, held_out, _ = choose.split(len(labels), labels, raw.num_classes, config, held_out=False)
    assert held_out is not None
    return train, held_out
