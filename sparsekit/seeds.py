"""Seeds that depend on what they are for alone, never on how many random numbers were drawn before."""

from __future__ import annotations

import hashlib
import json


def derive(*parts: int | str) -> int:
    """A seed from 0 to 2**63 - 1 for what `parts` name, such as `derive(seed, "order", epoch)`.

    Equal parts give equal seeds on every machine and Python version; `1` and `"1"` differ.

    Raises:
        TypeError: A part is neither an int nor a str.
    """
    if not all(type(part) in (int, str) for part in parts):  # 1.0, True and NumPy's 1 are written otherwise than 1
        raise TypeError(f"a seed is derived from ints and strs, not from {parts}")
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
