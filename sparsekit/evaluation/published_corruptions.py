"""CIFAR-10-C and CIFAR-100-C as published: `labels.npy`, and for each kind `KIND.npy` with all five severities."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekit.data.images import resized
from sparsekit.errors import UserError, first_line
from sparsekit.files import expanded

SEVERITIES = 5
_BATCH = 500


@dataclass(frozen=True)
class Published:
    """A folder of corrupted test sets (zenodo.org/records/2535967); images are read from the disk batch by batch.

    Attributes:
        files: The file of each kind, sorted by name.
        labels: int64 [N], equal for all kinds and severities.
    """

    files: dict[str, Path]
    labels: Tensor

    @classmethod
    def open(cls, folder: str, classes: int, order: Sequence[int] | None = None) -> Published:
        """Find the files in a folder, and check their shapes, types and labels.

        Args:
            folder: The folder.
            classes: Number of classes.
            order: The label that the model gives each published one; None for the same.

        Raises:
            UserError: a file is missing, or does not fit the others or the number of classes.
        """
        base = expanded(folder)
        if not (base / "labels.npy").is_file():
            raise UserError(f"--corruption_files {folder}: no labels.npy there; give the unpacked folder of CIFAR-10-C")
        files = {path.stem: path for path in sorted(base.glob("*.npy")) if path.name != "labels.npy"}
        if not files:
            raise UserError(f"--corruption_files {folder}: no KIND.npy beside labels.npy; give the unpacked folder")
        labels = _array(base / "labels.npy")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(f"--corruption_files: {base / 'labels.npy'} holds no list of whole numbers")
        lengths = set()
        for path in files.values():
            images = _array(path)
            if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
                raise UserError(f"--corruption_files: {path} holds no square uint8 images [N, S, S, channels]")
            lengths.add(len(images))
        count, rest = divmod(min(lengths), SEVERITIES)
        if len(lengths) > 1 or rest or not count or len(labels) not in (count, count * SEVERITIES):
            raise UserError(
                f"--corruption_files {folder}: {len(labels)} labels and files of {sorted(lengths)} images; each file "
                "must hold five severities of the same images"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"--corruption_files {folder}: labels from {labels.min()} to {labels.max()}, but the model has "
                f"{classes} classes; give the files that belong to its data set"
            )
        if any((labels[:count] != part).any() for part in labels.reshape(-1, count)):
            raise UserError(f"--corruption_files: {base / 'labels.npy'} differs from one severity to the next")
        known = torch.from_numpy(labels[:count].astype(np.int64))
        return cls(files, known if order is None else torch.tensor(order)[known])

    def batches(
        self, kind: str, severity: int, size: tuple[int, int], channels: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one kind at severity 1 to 5.

        Yields:
            Images resized to `size`, uint8 [B, C, H, W], and labels, int64 [B].

        Raises:
            UserError: the file cannot be read, or its images do not have `channels` channels.
        """
        images = _array(self.files[kind])
        if images.shape[3] != channels:
            raise UserError(
                f"--corruption_files: {self.files[kind]} has {images.shape[3]} channels, the model takes {channels}"
            )
        count = len(self.labels)
        start = (severity - 1) * count
        for first in range(0, count, _BATCH):
            last = min(first + _BATCH, count)
            part = resized(np.array(images[start + first : start + last]), size)
            yield part.to(device), self.labels[first:last].to(device)


def _array(path: Path) -> NDArray[Any]:
    """Memory-map an array; raises UserError for other files and arrays of Python objects."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--corruption_files: {path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"--corruption_files: {path} cannot be read: it is an archive of arrays; give one array a file")
    return found
