"""What a step costs the host: launches, waits for the device, copies from memory that is not pinned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nullcuda.conftest import NullCuda


@pytest.mark.nullcuda
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "waits"), [("fp32", 0), ("bf16", 0), ("fp16", 1)])
def test_a_masked_step_launches_little_more_than_a_bare_one(nullcuda: NullCuda, precision: str, waits: int) -> None:
    """And waits for nothing; but that in fp16 each replica's gradients are looked at for an overflow."""
    cost = json.loads(nullcuda.run("steps.py", precision).splitlines()[-1])
    assert cost.pop("upload") == {"launches": 0, "waits": 1, "pageable": 1}
    assert {step: counts["waits"] for step, counts in cost.items()} == {
        "bare": 0, "masked": waits, "stacked": 2 * waits, "recalibration": 0,
    }  # fmt: skip
    assert all(counts["pageable"] == 0 for counts in cost.values())
    assert 100 < cost["bare"]["launches"] < cost["masked"]["launches"] <= cost["bare"]["launches"] + 20
    assert cost["stacked"]["launches"] <= 3 * cost["masked"]["launches"]
