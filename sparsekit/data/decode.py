"""Decode one image file to 8-bit RGB: alike in every file, whatever its brightest pixel is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsekit.errors import RunError, first_line

_PHOTOMETRIC = 262
"""The TIFF tag that is 0 where 0 is white; Pillow applies it to 8-bit values alone."""


def read_rgb(path: str) -> Image.Image:
    """Read a file as Pillow does, its first frame, as RGB with 8 bits a channel.

    16-bit grey values are divided by 257, float ones multiplied by 255. Transparency is dropped: the colours beneath
    show. The camera's orientation (EXIF) is not applied, as in timm and torchvision.

    Raises:
        RunError: the file cannot be read, or its values are not in the range of its type.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return Image.fromarray(_grey(image)).convert("RGB")
            image.info.pop("transparency", None)  # Pillow would warn where it does not fit RGB
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise RunError(f"{path} is too large to read ({first_line(error)}); cut it into tiles, or shrink it") from error
    except Exception as error:  # PIL may raise anything for damaged files
        reason = f"{type(error).__name__}: {first_line(error)}".replace(f"{path!r}", "it")
        raise RunError(f"{path} cannot be read as an image ({reason}); repair or remove it") from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of 16 bits (0 to 65,535), 32 bits (the same range) or floats (0 to 1) as 8 bits, 0 to 255.

    Raises:
        ValueError: a value is out of range.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = 1.0 if image.mode == "F" else 65_535.0
    if not 0.0 <= low <= high <= white:  # also where a value is NaN
        raise ValueError(f"values from {low:g} to {high:g}, not within 0 (black) to {white:,.0f} (white)")
    # Pillow reads 16-bit PNG and PGM as 32 bits, too; elsewhere such a file may well hold 8-bit values
    if image.mode == "I" and image.format not in ("PNG", "PPM") and 0 < high <= 255:
        raise ValueError(f"32-bit values up to {high}, which may be of 8 or of 16 bits; save them as what they are")
    inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    return np.rint((white - values if inverted else values) * (255.0 / white)).astype(np.uint8)
