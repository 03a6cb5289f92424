"""What the readers of arrays and tables share: paths, targets, and a test split that is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsekit.data.examples import Data
from sparsekit.errors import UserError
from sparsekit.files import expanded


def path_of(root: str | None, file: str, option: str) -> Path:
    """A file, below `--data.root` where that is given; raises UserError where there is none."""
    path = expanded(root or "") / expanded(file)
    if not path.is_file():
        raise UserError(f"{option} {file!r}: there is no file {str(path)!r}; give one")
    return path


def targets_of(values: NDArray[Any], what: str, classes: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Targets as tensors take them: int64 for whole numbers, float32 for others; texts are classes, sorted by name.

    Args:
        values: The targets.
        what: The option that gives them, for messages.
        classes: Whether numbers are names of classes, too.

    Returns:
        The targets, and the classes' names, empty for numbers.

    Raises:
        UserError: they are neither numbers nor texts.
    """
    if classes and values.ndim != 1:
        raise UserError(f"--data.classes true: {what} has shape {values.shape}; give one class for each example")
    if values.dtype.kind in "iu" and not classes:
        return values.astype(np.int64), ()
    if values.dtype.kind in "fb" and not classes:
        return values.astype(np.float32), ()
    if values.dtype.kind not in "iufbU" or values.ndim != 1:
        raise UserError(f"{what}: {values.dtype} of shape {values.shape} are no targets; give numbers, or names [N]")
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, names))


def cut(x: NDArray[Any], y: NDArray[Any], fraction: float, class_names: tuple[str, ...]) -> Data:
    """Training examples and, cut off them, test examples: of every class its share, where targets are whole numbers."""
    import torch

    from sparsekit.data.choose import cut_test

    labels = torch.from_numpy(np.unique(y, return_inverse=True)[1]) if y.ndim == 1 and y.dtype == np.int64 else None
    train, test = (part.numpy() for part in cut_test(len(x), labels, fraction, "--data.test_fraction"))
    return data((x[train], y[train]), (x[test], y[test]), class_names)


def data(
    train: tuple[NDArray[Any], NDArray[Any]], test: tuple[NDArray[Any], NDArray[Any]], class_names: tuple[str, ...]
) -> Data:
    """The splits as tensors."""
    import torch

    tensors = [
        (torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))) for x, y in (train, test)
    ]
    return Data(train=tensors[0], test=tensors[1], class_names=class_names)
