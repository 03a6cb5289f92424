"""Decode one image file to 8-bit RGB: alike in every file, whatever its brightest pixel is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsekit.errors import RunError, first_line

_WHITE = 65_535
_SAMPLE = 16
_PHOTOMETRIC = 262
"""The TIFF tag that is 0 where 0 is white; Pillow applies it to 8-bit values alone."""


def read_rgb(path: str, white: int | None = None) -> Image.Image:
    """Read a file as Pillow does, its first frame, as RGB with 8 bits a channel.

    16-bit grey values are multiplied by 255 / white, float ones by 255. Transparency is dropped: the colours beneath
    show. The camera's orientation (EXIF) is not applied, as in timm and torchvision.

    Args:
        path: The file.
        white: The 16-bit grey value that is white; None for 65,535.

    Raises:
        RunError: the file cannot be read, or its values are not in the range of its type.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return Image.fromarray(_grey(image, white)).convert("RGB")
            image.info.pop("transparency", None)  # Pillow would warn where it does not fit RGB
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise RunError(f"{path} is too large to read ({first_line(error)}); cut it into tiles, or shrink it") from error
    except Exception as error:  # PIL may raise anything for damaged files
        reason = f"{type(error).__name__}: {first_line(error)}".replace(f"{path!r}", "it")
        raise RunError(f"{path} cannot be read as an image ({reason}); repair or remove it") from error


def dark_note(paths: Sequence[str]) -> str:
    """A line where 16-bit grey images have fewer bits, and would be nearly black; from a sample, empty if none is."""
    brightest = 0
    with suppress(Exception):  # a damaged file is named when its turn comes
        for path in paths[:: -(-len(paths) // _SAMPLE)]:
            with Image.open(path) as image:
                if not image.mode.startswith("I"):
                    return ""
                brightest = max(brightest, int(np.asarray(image).max()))
    if not 255 < brightest < _WHITE // 4 + 1:
        return ""
    bits = brightest.bit_length()
    return (
        f"16-bit grey images are dark: {brightest:,} of {_WHITE:,} is the brightest value in a sample; if they hold "
        f"{bits} bits, give --data.white {2**bits - 1}"
    )


def _grey(image: Image.Image, given: int | None) -> NDArray[np.uint8]:
    """Grey values of 16 bits (0 to white), 32 bits (the same range) or floats (0 to 1) as 8 bits, 0 to 255.

    Raises:
        ValueError: a value is out of range.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = 1.0 if image.mode == "F" else float(given or _WHITE)
    if not 0.0 <= low <= high <= white:  # also where a value is NaN
        raise ValueError(f"values from {low:g} to {high:g}, not within 0 (black) to {white:,.0f} (white)")
    # Pillow reads 16-bit PNG and PGM as 32 bits, too; elsewhere such a file may well hold 8-bit values
    if given is None and image.mode == "I" and image.format not in ("PNG", "PPM") and 0 < high <= 255:
        raise ValueError(f"32-bit values up to {high}, which may be of 8 or of 16 bits; give --data.white")
    inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    return np.rint((white - values if inverted else values) * (255.0 / white)).astype(np.uint8)
