"""What a data set holds: where each split comes from, how many images and classes it has, and which images those are.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsekit.config.checks import fold_of, limit_of
from sparsekit.config.options import DataConfig


def cut_by(config: DataConfig) -> str:
    """The option that says which examples are held out."""
    return f"--data.fold {config.fold}" if config.fold is not None else f"--data.held_out {config.held_out:g}"


def limited_by(config: DataConfig) -> str:
    """The end of a line about training examples, where `--data.limit` leaves some of them out; else empty."""
    return "" if config.limit is None else f", limited by --data.limit {config.limit:g}"


def sizes(train: int, held_out: int, config: DataConfig) -> tuple[int, int]:
    """How many examples are trained on and held out of a data set that holds some out itself, after fold and limit."""
    if config.fold is not None:
        which, folds = fold_of(config.fold)
        train, held_out = train + held_out, len(range(which - 1, train + held_out, folds))
        train -= held_out
    return (train if config.limit is None else limit_of(config.limit, train)), held_out


@dataclass(frozen=True)
class Part:
    """A split: its number of images and of classes (None without), where they come from, and what one is called."""

    images: int
    classes: int | None
    source: str
    unit: str = "image"

    def __str__(self) -> str:
        of = "" if self.classes is None else f" of {self.classes:,} class" + "es" * (self.classes != 1)
        return f"{self.images:,} {self.unit}{'s' * (self.images != 1)}{of}, {self.source}"


@dataclass(frozen=True)
class Contents:
    """What a data set holds.

    Attributes:
        train: The training split, without the held-out images.
        held_out: The held-out split.
        test: The test split.
        notes: Lines for the user: what was passed over, and what is not as one would think.
        record: Returns the splits' images as plain data: `images` maps each split to its images, by name, and their
            labels or checksums; `bytes` holds the sizes of some of their files.
    """

    train: Part
    held_out: Part
    test: Part
    notes: tuple[str, ...] = ()
    record: Callable[[], dict[str, Any]] = dict

    @classmethod
    def of_published(
        cls,
        name: str,
        images: tuple[int, int, int],
        classes: int,
        config: DataConfig,
        cut: bool = True,
        record: Callable[[], dict[str, Any]] = dict,
    ) -> Contents:
        """The contents of a published data set.

        Args:
            name: Name of the data set.
            images: Images to train on, held out, and for tests.
            classes: Number of classes.
            config: The options of `--data`.
            cut: Whether held-out images are cut off; False if the data set itself defines them.
            record: Returns the images as plain data.
        """
        whole = f"from {name}"
        held_out = f"cut off the training images by {cut_by(config)}" if cut or config.fold else whole
        train, held, test = images
        parts = (
            Part(train, classes, f"{whole}{limited_by(config)}"),
            Part(held, classes, held_out),
            Part(test, classes, whole),
        )
        return cls(*parts, record=record)

    def lines(self) -> list[str]:
        """The first lines of a run: one a split, then the notes."""
        return [f"train: {self.train}", f"held out: {self.held_out}", f"test: {self.test}", *self.notes]

    def to_json(self) -> dict[str, Any]:
        """The entry `data` of plan.json."""
        parts = {"train": self.train, "held_out": self.held_out, "test": self.test}
        return {
            **{split: {"images": p.images, "classes": p.classes, "source": p.source} for split, p in parts.items()},
            "notes": list(self.notes),
        }
