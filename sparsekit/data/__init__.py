"""Data sets: raw files in, augmented batches on the device out."""

from __future__ import annotations

from sparsekit.data.images import ImageData, Split

__all__ = ["ImageData", "Split"]
