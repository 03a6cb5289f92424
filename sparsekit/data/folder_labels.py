"""List the training and test images of an image folder, labelled by the folders of their classes."""

from __future__ import annotations

from pathlib import Path

from timm.data import create_dataset  # type: ignore[attr-defined]

from sparsekit.config.options import DataConfig
from sparsekit.data.stream import Sample
from sparsekit.errors import UserError
from sparsekit.files import expanded


def list_images(config: DataConfig) -> tuple[list[Sample], list[Sample] | None, list[str]]:
    """List the images in `--data.root`, without opening any.

    Returns:
        Training samples; test samples, or None without a folder val/ or validation/; and the classes' names.

    Raises:
        UserError: a folder is missing, or does not have one folder of images for each class.
    """
    hint = "give the folder with train/ and val/, each with one folder of images a class"
    if config.root is None:
        raise UserError(f"--data.root: imagefolder is read from files and no folder is given; {hint}")
    root = expanded(config.root)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--data.root: '{config.root}' {state}; {hint}")
    folder = root / "train" if (root / "train").is_dir() else root
    train, classes = _samples(folder, hint)
    if len(classes) < 2:
        raise UserError(f"--data.root: {str(folder)!r} holds images of one class, {next(iter(classes))!r}; {hint}")
    found = [root / name for name in ("val", "validation") if (root / name).is_dir()] if folder != root else []
    if not found:
        return train, None, list(classes)
    test, others = _samples(found[0], hint)
    names = list(others)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"--data.root: {str(found[0])!r} holds a class {unknown[0]!r} that {str(folder)!r} lacks")
    return train, [(path, classes[names[label]]) for path, label in test], list(classes)


def _samples(folder: Path, hint: str) -> tuple[list[Sample], dict[str, int]]:
    try:
        reader = create_dataset("", root=str(folder), search_split=False).reader
    except RuntimeError as error:
        raise UserError(f"--data.root: {str(folder)!r} holds no images; {hint}") from error
    classes: dict[str, int] = reader.class_to_idx
    if "" in classes:
        stray = next(path for path, label in reader.samples if label == classes[""])
        raise UserError(f"--data.root: {stray!r} is not in the folder of a class; {hint}")
    return reader.samples, classes
