"""How a model's images are made: size, normalisation and crop, in the words of timm's config.json."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from sparsekit._types import Tensor
from sparsekit.config.options import DataConfig
from sparsekit.errors import UserError

T = TypeVar("T", bound="MadeImages")
FIELDS = ("size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
"""What a config.json may say of a model's images."""


@dataclass(frozen=True)
class InputConfig:
    """How a model's images are made for a test.

    Attributes:
        channels: Number of channels.
        size: Height and width in pixels; of a user's own examples, their dimensions after the first.
        mean: Mean of each channel that normalisation subtracts, black 0 to white 1.
        std: Standard deviation of each channel that normalisation divides by, black 0 to white 1.
        crop_pct: Side of the crop as a fraction of the resized image's; above 0, at 1 nothing is cut off a square.
        crop_mode: timm's `center`, `squash` or `border`.
        interpolation: Of the resizing, as timm names it.
    """

    channels: int
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bilinear"

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The size of images in pixels."""
        height, width = self.size
        return height, width

    @property
    def square(self) -> bool:
        """Whether height and width are equal."""
        return len(self.size) == 2 and self.size[0] == self.size[1]

    @property
    def side(self) -> int | list[int]:
        """The side in pixels, as a file names it; height and width where they differ."""
        return self.size[0] if self.square else list(self.size)

    @property
    def pixels(self) -> str:
        """The size as text, such as `224×224`."""
        return "×".join(map(str, self.size))

    def differing(self, other: InputConfig) -> list[str]:
        """The `FIELDS` in which another differs."""
        return [name for name in FIELDS if getattr(self, name) != getattr(other, name)]

    def text(self, names: Iterable[str] = FIELDS) -> str:
        """Some of the `FIELDS` as text, such as `mean 0.5, std 0.5, 224×224 pixels`."""
        return ", ".join(f"{self.pixels} pixels" if name == "size" else f"{name} {self._value(name)}" for name in names)

    def _value(self, name: str) -> str:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return f"{value}"
        return " ".join(f"{item:.4g}" for item in (value[:1] if len(set(value)) == 1 else value))


def with_statistics(inputs: InputConfig, config: DataConfig) -> InputConfig:
    """The same with `--data.mean` and `--data.std`, where they are given.

    Raises:
        UserError: they have neither one value nor one for each channel.
    """
    found: dict[str, Any] = {}
    for key, given in (("mean", config.mean), ("std", config.std)):
        if given is not None:
            values = tuple(given) if isinstance(given, list) else (given,)
            if len(values) not in (1, inputs.channels):
                raise UserError(
                    f"--data.{key} has {len(values)} values for {inputs.channels} channels; give one for each"
                )
            found[key] = values if len(values) > 1 else values * len(inputs.mean)
    return replace(inputs, **found)


class MadeImages:
    """What the data sets share: how their images are made, and what their labels mean.

    Attributes:
        inputs: How the images are made.
        own: How they are made where no model's config.json says otherwise.
        strength: How strong the augmentation of training images is, 0 to 4; 1 is the usual.
        class_names: The classes' names, by label; empty if they have none.
        class_order: The label of each class in the data set's own order, where a model has another order; else None.
    """

    fixed: ClassVar[bool] = False
    """Whether inputs reach a model as they are, whatever its config.json says."""
    cropped: ClassVar[bool] = False
    """Whether images are resized and cropped as a model's config.json says; else they are shown whole."""
    inputs: InputConfig
    own: InputConfig
    strength: float = 1.0
    class_names: tuple[str, ...]
    class_order: tuple[int, ...] | None = None

    @property
    def image_size(self) -> int:
        """Side of the images in pixels; the height where they are not square."""
        return self.inputs.size[0]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that normalisation subtracts, black 0 to white 1."""
        return self.inputs.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that normalisation divides by, black 0 to white 1."""
        return self.inputs.std

    def at_strength(self: T, strength: float) -> T:
        """The same data set, whose training images are augmented at a strength of 0 to 4.

        Raises:
            UserError: this augmentation has no such strength.
        """
        if strength == self.strength:
            return self
        if self.fixed:
            raise UserError(
                "--replicas.vary augment: examples of your own are augmented by their own data set alone, which has no "
                "strength; vary another"
            )
        other = copy.copy(self)
        other.strength = strength
        other._changed()
        return other

    def known_targets(self, split: Any) -> Tensor | None:
        """The targets of a split on the CPU, where they lie in memory; None where they would have to be read."""
        return None

    def first_not_finite(self, split: Any) -> str | None:
        """A line about the first example of a split that is not finite; None without one. Images never are."""
        return None

    def _changed(self) -> None:
        """Prepare for another strength."""

    def relabel(self, order: Sequence[int]) -> None:
        """Note that each class has another label, `order[label]`; the data sets change the labels themselves."""
        if self.class_names:
            self.class_names = tuple(name for _, name in sorted(zip(order, self.class_names, strict=True)))
        self.class_order = tuple(order if self.class_order is None else (order[label] for label in self.class_order))
