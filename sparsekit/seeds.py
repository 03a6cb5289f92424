"""Seeds derived from what they are used for, independent of random numbers drawn before."""

from __future__ import annotations

import hashlib
import json


def derive(*parts: int | str) -> int:
    """A seed from 0 to 2**63 - 1, derived from the parts, as in `derive(seed, "order", epoch)`.

    Equal parts give equal seeds on every machine and Python version; `1` and `"1"` differ.

    Raises:
        TypeError: a part is neither an int nor a str.
    """
    if not all(type(part) in (int, str) for part in parts):  # JSON writes 1.0, True and NumPy's 1 differently from 1
        raise TypeError(f"a seed is derived from ints and strs, not from {parts}")
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
