"""The pattern of whole channels: `channels`, or `channels:8` where layers keep multiples of 8."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsekit.errors import UserError

NAME = "channels"


@dataclass(frozen=True)
class ChannelPattern:
    """Whole channels; of each group a multiple of so many is kept."""

    multiple: int = 1

    @classmethod
    def parse(cls, text: str | None) -> ChannelPattern | None:
        """From `channels` or `channels:N`; None for other patterns; raises UserError for another N."""
        if text is None or text.partition(":")[0] != NAME:
            return None
        found = re.fullmatch(rf"{NAME}(?::(\d+))?", text)
        if not found or found[1] == "0" or len(found[1] or "") > 4:
            raise UserError(f"--masks.pattern is {text!r}; give {NAME}, or {NAME}:8 to keep multiples of 8")
        return cls(int(found[1] or 1))

    def __str__(self) -> str:
        return NAME if self.multiple == 1 else f"{NAME}:{self.multiple}"
