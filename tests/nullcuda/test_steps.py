"""What a step costs the host: launches, waits for the device, copies from memory that is not pinned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sparsekit.api import PruningMethod
from sparsekit.plugins.registry import discover, find

if TYPE_CHECKING:
    from nullcuda.conftest import NullCuda

MORE = {"fp32": 10, "bf16": 10, "fp16": 22}
"""Launches of a masked step beyond a bare one's; in fp16 both scaling and a look at the gradients for an overflow."""
TIMES = {"cs": 2.8, "dnw": 1.9, "dpf": 1.2, "dst": 3.4, "gsm": 1.5, "lc": 1.5, "movement": 1.7, "str": 2.5}
"""Launches of a step of each method with hooks for it, in those of a bare one, which takes 122 for fourteen layers."""


LAST = {"movement": 1.7}
"""The same after the last pruning, where it is more than 1.5: scores of movement go on."""


def hooked() -> list[str]:
    """The installed methods that do something at every step."""
    hooks = ("effective", "penalty", "gradients")
    methods = {name: find("method", name).load() for name in discover().of("method")}
    return [n for n, cls in methods.items() if any(getattr(cls, h) is not getattr(PruningMethod, h) for h in hooks)]


@pytest.mark.nullcuda
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", "sgd"), ("bf16", "adamw"), ("fp16", "sgd"), ("fp16", "adamw")]
)
def test_a_step_costs_the_host_little_more_than_a_bare_one(nullcuda: NullCuda, precision: str, optimizer: str) -> None:
    """It waits for nothing but the report of the loss, after 50 steps."""
    cost = json.loads(nullcuda.run("steps.py", precision, optimizer, *(names := hooked())).splitlines()[-1])
    assert cost.pop("upload") == {"launches": 0, "waits": 1, "pageable": 1, "uploaded": 12}
    masks = cost.pop("new_masks")
    assert masks["uploaded"] == masks["weights"] > 10_000
    assert cost.pop("score")["waits"] <= 2
    launches, bare = {step: counts["launches"] for step, counts in cost.items()}, cost["bare"]["launches"]
    assert all(counts["pageable"] == 0 for counts in cost.values())
    assert {step: counts["waits"] for step, counts in cost.items() if counts["waits"]} == dict.fromkeys(names, 1 / 50)
    assert 100 < bare < launches["masked"] <= bare + MORE[precision]
    assert bare < launches["by_hand"] <= bare + 4 + 14  # one a layer, whose gradients are masked as they come
    assert launches["recorded"] <= (12 if precision != "fp16" else bare + MORE[precision])
    assert launches["stacked"] <= 3 * launches["masked"]
    assert launches["stacked_recorded"] <= (2 * 12 if precision != "fp16" else launches["stacked"])
    assert {name: launches[name] for name in names if launches[name] > TIMES[name] * bare} == {}
    assert {
        name: launches[name] for name in names if launches[f"{name}, last segment"] > LAST.get(name, 1.5) * bare
    } == {}
