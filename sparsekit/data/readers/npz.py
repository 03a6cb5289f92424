"""Arrays in one `.npz` file."""

from __future__ import annotations

import zipfile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsekit.data.examples import Data
from sparsekit.data.readers import tables
from sparsekit.errors import UserError, first_line, nearest


def read(
    root: str | None,
    file: str,
    x: str = "x",
    y: str = "y",
    test_x: str | None = None,
    test_y: str | None = None,
    test_fraction: float = 0.2,
    channels: Literal["first", "last", "none"] = "first",
    classes: bool = False,
) -> Data:
    """Arrays of inputs and targets in an .npz file.

    Inputs of bytes are divided by 255, those of 64-bit floats are made 32-bit, others stay as they are. Whole numbers
    as targets are classes, and so are texts.

    Args:
        root: Folder of the file; by default the current directory.
        file: The file, as numpy.savez writes it.
        x: Name of the training inputs [N, ...].
        y: Name of the training targets [N, ...].
        test_x: Name of the test inputs; without one they are cut off the training examples.
        test_y: Name of the test targets.
        test_fraction: Fraction of the examples that is cut off for tests, above 0 and below 1.
        channels: Where inputs have their channels: behind N, at the end, or nowhere, as grey images [N, H, W].
        classes: Whether numbers in the targets only name classes, which are then numbered from 0 in their order.
    """
    if (test_x is None) != (test_y is None):
        raise UserError("--data.test_x and --data.test_y belong together; give both, or neither")
    path = tables.path_of(root, file, "--data.file")
    names = [("x", x), ("y", y), *((f"test_{key}", name) for key, name in (("x", test_x), ("y", test_y)) if name)]
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"--data.file {file!r} is no .npz file, as numpy.savez writes it; give one")
        with np.load(path, allow_pickle=False) as arrays:
            for option, name in names:
                if name not in arrays.files:
                    raise UserError(
                        f"--data.{option} {name!r} is no array of {file!r}, which has {', '.join(arrays.files)}."
                        f"{nearest(name, arrays.files)}"
                    )
            found = {option: arrays[name] for option, name in names}
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--data.file {file!r} cannot be read: {first_line(error)}; give an .npz file of numbers"
        ) from error
    for inputs, targets in (("x", "y"), ("test_x", "test_y")):
        if inputs in found and (found[inputs].shape[:1] != found[targets].shape[:1] or not found[inputs].size):
            shapes = " and ".join(f"{found[key].shape}" for key in (inputs, targets))
            raise UserError(
                f"--data.{inputs} and --data.{targets} have shapes {shapes}; give as many targets as inputs"
            )
    y_all, names_of_classes = tables.targets_of(
        np.concatenate([found["y"], found["test_y"]]) if test_y else found["y"], "--data.y", classes
    )
    train = _inputs(found["x"], channels)
    if test_x is None:
        return tables.cut(train, y_all, test_fraction, names_of_classes)
    count = len(train)
    return tables.data((train, y_all[:count]), (_inputs(found["test_x"], channels), y_all[count:]), names_of_classes)


def _inputs(values: NDArray[Any], channels: str) -> NDArray[Any]:
    """Inputs with their channels behind N, in a type that models take."""
    if values.dtype.kind not in "fiub":
        raise UserError(f"--data.x: {values.dtype} of shape {values.shape} are no numbers; give numbers")
    if channels == "none":
        values = values[:, None]
    elif channels == "last":
        values = np.moveaxis(values, -1, 1)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    return values.astype({"f": np.float32, "b": np.float32}.get(values.dtype.kind, np.int64))
