"""Small images that live on the device as tensors and are augmented by the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sparsekit.config.options import DataConfig
from sparsekit.data import order
from sparsekit.data.files import Images, RawData, read
from sparsekit.errors import UserError

Split = Literal["train", "held_out", "test"]

_FLIPPED = ("fashion_mnist", "cifar10", "cifar100")  # a mirrored digit is another digit, or none
_EVALUATION_BATCH = 500


class ImageData:
    """The three splits of a data set on one device. `load` makes one from the options.

    Augmentation follows torchvision's `RandomCrop(image_size, padding=round(image_size / 8))`, which pads with black
    before normalisation, then its `RandomHorizontalFlip` where a flip keeps the label.

    Attributes:
        num_classes: Labels run from 0 to `num_classes` - 1.
        channels: 1 or 3.
        image_size: Side of the images in pixels.
        mean: Mean of each channel over the training split, black 0 to white 1.
        std: Standard deviation of each channel over the training split, in the same unit.
        batch_size: Images a training batch.
        steps_per_epoch: Training batches an epoch.
        train_size: Images in the training split, the held-out ones not among them.
        held_out_size: Images in the held-out split.
        test_size: Images in the test split.
        normalise: Makes float32 of mean 0 and standard deviation 1 over the training split.
    """

    def __init__(
        self,
        splits: dict[Split, tuple[Tensor, Tensor]],
        *,
        num_classes: int,
        batch_size: int,
        shift: int,
        flip: bool,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        """Move `splits`, uint8 [N, C, S, S] and int64 [N] each, to `device`.

        Args:
            splits: Images and labels by split.
            num_classes: How many classes there are.
            batch_size: Images a training batch, at most the training split's.
            shift: Largest random shift in pixels; 0 for none.
            flip: Whether to flip half the training images.
            device: Where images, labels and batches live.
            channels_last: Memory order of the batches.
        """
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.device = device
        self._shift = shift
        self._flip = flip
        self._memory = torch.channels_last if channels_last else torch.contiguous_format

        train = splits["train"][0]
        self.train_size, self.channels, self.image_size = train.shape[:3]
        self.held_out_size = len(splits["held_out"][0])
        self.test_size = len(splits["test"][0])
        self.steps_per_epoch = self.train_size // batch_size
        self.mean, self.std = _statistics(train)
        self.normalise = Normaliser(self.mean, self.std, device, self._memory)

        size = self.image_size
        padded = functional.pad(train, (shift,) * 4).to(device)
        # [N, 2 * shift + 1, 2 * shift + 1, C, S, S], a view: indexing it by image, row and column crops a whole batch.
        self._crops = padded.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
        self._images: dict[Split, Tensor] = {
            "train": self._crops[:, shift, shift],
            "held_out": splits["held_out"][0].to(device),
            "test": splits["test"][0].to(device),
        }
        self._labels = {name: labels.to(device) for name, (_, labels) in splits.items()}
        self._cpu_labels = {name: labels.cpu() for name, (_, labels) in splits.items()}  # random choices are made there

    @classmethod
    def load(cls, config: DataConfig, device: torch.device, channels_last: bool) -> ImageData:
        """Read, split, resize and move the data set that `config` names.

        The held-out images are the same in every run: they depend on `held_out`, never on `--seed`.

        Raises:
            UserError: A value of `config` that does not fit, or files that are missing or damaged.
        """
        if not 0 < config.held_out < 1:
            raise UserError(f"--data.held_out: {config.held_out} is no fraction; give one between 0 and 1, such as 0.1")
        if config.batch_size < 1:
            raise UserError(f"--data.batch_size: {config.batch_size} is too small; give at least 1")
        raw = read(config.name, config.root)
        native = 16 if config.name == "digits" else raw.train_images.shape[1]
        size = native if config.image_size is None else config.image_size
        if size < 4:
            raise UserError(f"--data.image_size: {size} is too small; give at least 4 pixels")
        train, held_out = _split(raw, config)
        if config.batch_size > len(train):
            raise UserError(
                f"--data.batch_size: {config.batch_size} is more than there are training images; "
                f"give at most {len(train)} for {config.name}"
            )
        images, labels = resized(raw.train_images, size), torch.tensor(raw.train_labels)
        return cls(
            {
                "train": (images[train], labels[train]),
                "held_out": (images[held_out], labels[held_out]),
                "test": (resized(raw.test_images, size), torch.tensor(raw.test_labels)),
            },
            num_classes=raw.num_classes,
            batch_size=config.batch_size,
            shift=round(size / 8) if config.augment else 0,
            flip=config.augment and config.name in _FLIPPED,
            device=device,
            channels_last=channels_last,
        )

    def train_batches(
        self, seed: int, steps: int, start: int = 0, subset: Tensor | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches number `start` to `steps` - 1 of the stream that `seed` alone determines.

        The order of an epoch depends on (seed, epoch) and a batch's augmentation on (seed, its number), so a stream
        that starts in the middle gives the same bits as one that got there. An epoch's last, incomplete batch is
        dropped. Nothing waits for the device.

        Args:
            seed: Seed of the order and the augmentation.
            steps: Where the stream ends.
            start: Number of the first batch.
            subset: int64 indices into the training split, if only these are used; fewer than `batch_size` make batches
                of them all.
            part: `(k, n)` gives the k-th of n equal parts of each batch, with the same augmentation as in the whole;
                what does not divide is left out.

        Yields:
            Normalised images, float32 [B, C, S, S], and labels, int64 [B].
        """
        chosen = torch.arange(self.train_size) if subset is None else subset.cpu()
        batch = min(self.batch_size, len(chosen))
        per_epoch = len(chosen) // batch
        shuffled, shuffled_epoch = chosen, -1
        for step in range(start, steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != shuffled_epoch:
                shuffle = torch.randperm(len(chosen), generator=order.generator(seed, "order", epoch))
                shuffled, shuffled_epoch = self._to_device(chosen[shuffle]), epoch
            index = shuffled[position * batch : (position + 1) * batch]
            size = batch // part[1]
            mine = slice(part[0] * size, (part[0] + 1) * size) if part[1] > 1 else slice(None)
            yield self.normalise(self._augmented(index, seed, step, mine)), self._labels["train"][index[mine]]

    def evaluation_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split as they are, in an order that is always the same, the last batch incomplete.

        Args:
            split: Which split.
            limit: How many images, if not all: always the same, and each class in its share.

        Yields:
            Normalised images, float32 [B, C, S, S] with B at most 500, and labels, int64 [B].
        """
        for images, labels in self.raw_batches(split, limit):
            yield self.normalise(images), labels

    def raw_batches(self, split: Split, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The same images before they are normalised, uint8 [B, C, S, S]; `FolderData` gives float32."""
        images, labels = self._images[split], self._labels[split]
        some = None
        if limit is not None and limit < len(labels):
            some = self._to_device(order.stratified(self._cpu_labels[split], order.generator("limit", split))[:limit])
        count = len(labels) if some is None else len(some)
        for first in range(0, count, _EVALUATION_BATCH):
            part = slice(first, min(first + _EVALUATION_BATCH, count))
            index = part if some is None else some[part]
            yield images[index], labels[index]

    def subset(self, fraction: float, seed: int) -> Tensor:
        """Choose a random `fraction` of the training split, each class in its share and with at least one image.

        Returns:
            Sorted int64 indices, on the CPU.

        Raises:
            UserError: `fraction` is not above 0 and at most 1.
        """
        return order.subset(self._cpu_labels["train"], fraction, self.num_classes, seed)

    def _augmented(self, index: Tensor, seed: int, step: int, part: slice) -> Tensor:
        """uint8 [B, C, S, S]: a part of the training images `index`, shifted and flipped as in the whole."""
        if not self._shift and not self._flip:
            return self._images["train"][index[part]]
        generator = order.generator(seed, "augment", step)
        corner = torch.randint(2 * self._shift + 1, (2, len(index)), generator=generator)
        flipped = torch.randint(2, (1, len(index)), generator=generator)
        top, left, flip = self._to_device(torch.cat([corner, flipped])[:, part])  # one copy a step
        images = self._crops[index[part], top, left]
        return torch.where(flip.bool()[:, None, None, None], images.flip(-1), images) if self._flip else images

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # from ordinary memory, CUDA may wait


class Normaliser:
    """Makes float32 of mean 0 and standard deviation 1 of images [B, C, S, S] with values of 0 to 255.

    Args:
        mean: A channel's mean, white being 1.
        std: A channel's standard deviation, in the same unit.
        device: Where the images are.
        memory: Memory order of what comes out.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, memory: torch.memory_format
    ) -> None:
        self._mean = torch.tensor([255 * value for value in mean], device=device)[:, None, None]
        self._scale = torch.tensor([1 / (255 * value) for value in std], device=device)[:, None, None]
        self._memory = memory

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images; those given stay as they are."""
        return images.to(torch.float32, memory_format=self._memory, copy=True).sub_(self._mean).mul_(self._scale)

    def undone(self, images: Tensor) -> Tensor:
        """What was normalised, float32 of 0 to 255."""
        return (images / self._scale + self._mean).clamp_(0.0, 255.0)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, S, S], white being 1, by exact counts."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(share @ values)
        means.append(mean)
        # At least one grey level, so that a channel of one colour can be normalised.
        stds.append(max(float(share @ (values - mean).square()) ** 0.5, 1 / 255))
    return tuple(means), tuple(stds)


def resized(images: Images, size: int) -> Tensor:
    """Images as tensors, uint8 [N, C, size, size] from [N, H, W, C]."""
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    if tensor.shape[-1] == size:
        return tensor
    from torchvision.transforms.v2 import functional as transforms  # costs 1.6 s

    # In parts, as some CPUs resize in float32, four times the size.
    parts = tensor.chunk(1 + len(tensor) // 1000)
    return torch.cat([transforms.resize(part, [size, size], antialias=True) for part in parts])


def _split(raw: RawData, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Indices into the training images: those to train on and those held out, both sorted."""
    labels = torch.tensor(raw.train_labels)
    if raw.held_out is not None:
        return torch.arange(len(labels) - raw.held_out), torch.arange(len(labels) - raw.held_out, len(labels))
    return order.cut(labels, raw.num_classes, config.held_out)
