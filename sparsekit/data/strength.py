"""What a strength of augmentation makes of the arguments of timm's loader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sparsekit.errors import UserError

_CROPS = {
    "rrc": ((0.08, 1.0), (3 / 4, 4 / 3)),
    "rkrc": ((0.8, 1.0), (0.9, 1 / 0.9)),
    "rkrr": ((0.8, 1.0), (0.9, 1 / 0.9)),
}
"""timm's `scale` and `ratio` by `train_crop_mode`, where they are not given."""
_MAGNITUDES = {"rand": 10, "augmix": 3}
"""timm's magnitude by kind of `auto_augment`, where it is not given."""


def scaled(kwargs: Mapping[str, Any], strength: float) -> dict[str, Any]:
    """The arguments of timm's loader at a strength above 0; at 1 they are as given.

    With strength s the areas a of crops become 1 - s (1 - a) up to s = 1; above, the lowest becomes
    a / (1 + (s - 1) (1 - a)), about a / s. Ratios r become r^s; probabilities, jitter and the magnitude of `rand` and
    `augmix` are multiplied by s, the magnitude up to timm's highest, 10; flips stay as they are above 1.

    Raises:
        UserError: `auto_augment` has no magnitude.
    """
    if strength == 1.0:
        return dict(kwargs)
    (scale, ratio), found = _CROPS.get(kwargs.get("train_crop_mode") or "", _CROPS["rrc"]), dict(kwargs)
    low, high = kwargs.get("scale") or scale
    if strength < 1.0:
        found["scale"] = (1.0 - strength * (1.0 - low), 1.0 - strength * (1.0 - high))
    else:  # the whole image stays whole
        found["scale"] = (low / (1.0 + (strength - 1.0) * max(1.0 - low, 0.0)), high)
    found["ratio"] = tuple(value**strength for value in kwargs.get("ratio") or ratio)
    for name, default in (("hflip", 0.5), ("vflip", 0.0)):
        found[name] = kwargs.get(name, default) * min(strength, 1.0)
    for name in ("color_jitter_prob", "gaussian_blur_prob", "grayscale_prob", "re_prob"):
        if kwargs.get(name):
            found[name] = min(kwargs[name] * strength, 1.0)
    if (jitter := kwargs.get("color_jitter", 0.4)) is not None:
        several = isinstance(jitter, (list, tuple))
        # the fourth is the hue, of which torchvision takes 0.5 at most
        found["color_jitter"] = (
            [min(value * strength, 0.5 if place == 3 else value * strength) for place, value in enumerate(jitter)]
            if several
            else jitter * strength
        )
    if policy := kwargs.get("auto_augment"):
        found["auto_augment"] = _with_magnitude(policy, strength)
    return found


def _with_magnitude(policy: str, strength: float) -> str:
    """A policy of timm, such as `rand-m9-mstd0.5`, with its magnitude multiplied and rounded."""
    kind, *parts = policy.split("-")
    if kind not in _MAGNITUDES:
        raise UserError(
            f"--data.kwargs: auto_augment {policy!r} has no magnitude, so that its only strengths are 0 and 1, not "
            f"{strength:g}; take rand-m9 or augmix-m3, or leave the strength out"
        )
    given = [int(found[1]) for part in parts if (found := re.fullmatch(r"m(\d+)", part))]
    others = [part for part in parts if not re.fullmatch(r"m(\d+)", part)]
    magnitude = round((given[-1] if given else _MAGNITUDES[kind]) * strength)
    return "-".join([kind, f"m{magnitude}", *others])
