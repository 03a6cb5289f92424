"""What lies in a folder of images: training and test samples, each labelled by its class' folder."""

from __future__ import annotations

from pathlib import Path

from timm.data import create_dataset  # type: ignore[attr-defined]

from sparsekit.config.options import DataConfig
from sparsekit.data.stream import Sample
from sparsekit.errors import UserError
from sparsekit.files import expanded


def listed(config: DataConfig) -> tuple[list[Sample], list[Sample] | None, list[str]]:
    """Training samples, test samples where they have a folder of their own, and the classes' names.

    Opens no image. Raises UserError.
    """
    wanted = "give the folder with train/ and val/, each with one folder of images a class"
    if config.root is None:
        raise UserError(f"--data.root: imagefolder is read from files and no folder is given; {wanted}")
    root = expanded(config.root)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--data.root: '{config.root}' {state}; {wanted}")
    folder = root / "train" if (root / "train").is_dir() else root
    train, classes = _samples(folder, wanted)
    if len(classes) < 2:
        raise UserError(f"--data.root: {str(folder)!r} holds images of one class, {next(iter(classes))!r}; {wanted}")
    found = [root / name for name in ("val", "validation") if (root / name).is_dir()] if folder != root else []
    if not found:
        return train, None, list(classes)
    test, others = _samples(found[0], wanted)
    names = list(others)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"--data.root: {str(found[0])!r} holds a class {unknown[0]!r} that {str(folder)!r} lacks")
    return train, [(path, classes[names[label]]) for path, label in test], list(classes)


def _samples(folder: Path, wanted: str) -> tuple[list[Sample], dict[str, int]]:
    try:
        reader = create_dataset("", root=str(folder), search_split=False).reader
    except RuntimeError as error:
        raise UserError(f"--data.root: {str(folder)!r} holds no images; {wanted}") from error
    classes: dict[str, int] = reader.class_to_idx
    if "" in classes:
        stray = next(path for path, label in reader.samples if label == classes[""])
        raise UserError(f"--data.root: {stray!r} lies in no class' folder; {wanted}")
    return reader.samples, classes
