"""What a soup brought over its candidates on the test split, and how far that can be told with so many examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

RESAMPLES = 2000
"""Enough for the ends of a 95 % interval to two digits."""


def gain(soup: Mapping[str, Tensor], candidates: Sequence[Mapping[str, Tensor]], seed: int) -> dict[str, float]:
    """The soup's measures less the candidates' mean, with intervals of the percentile bootstrap over examples.

    The same examples are drawn for the soup and for its candidates, so that what is hard for all counts for nothing.
    An interval says what another draw of examples may change, not what another seed would.

    Args:
        soup: Measures of each example, [N] each, by name.
        candidates: The same of each candidate.
        seed: Of the resampling.

    Returns:
        `gain.NAME`, and the ends of its 95 % interval, `gain.NAME.low` and `gain.NAME.high`; none for a measure that
        is not finite everywhere.
    """
    found: dict[str, float] = {}
    for name, values in soup.items():
        difference = (values - torch.stack([each[name] for each in candidates]).mean(0)).double().cpu()
        if not bool(difference.isfinite().all()):
            continue
        generator = torch.Generator().manual_seed(seed)
        count = len(difference)
        means = torch.stack(
            [difference[torch.randint(count, (count,), generator=generator)].mean() for _ in range(RESAMPLES)]
        )
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        found |= {f"gain.{name}": float(difference.mean()), f"gain.{name}.low": low, f"gain.{name}.high": high}
    return found
