"""Tensors that say they lie on a GPU: refused is what torch refuses there, and all else has the CPU's values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plugin_classes import Twice, tried
from torch import Tensor

from sparsekit.api import PruningStep
from sparsekit.testing.method_case import MethodCase
from sparsekit.testing.method_rules import METHOD_RULES
from sparsekit.testing.placed import Placed, WrongDevice, as_on_gpu

VALUES = torch.arange(12.0).reshape(4, 3) - 5.0
Hook = Callable[[Tensor], Any]

FINE: list[Hook] = [
    lambda w: w * torch.tensor(3.0),
    lambda w: w * torch.ones(4, 3, device=w.device),
    lambda w: w * torch.tensor([1.0, 2.0, 3.0], device=w.device),
    lambda w: w * w.new_tensor([1.0, 2.0, 3.0]),
    lambda w: w * torch.ones(3).to(w.device),
    lambda w: w * float(w.abs().max()),
    lambda w: w if w.sum() > 0 else -w,
    lambda w: w[w > 0].sum(),
    lambda w: w[torch.arange(2)],
    lambda w: torch.rand(w.shape, device=w.device, generator=torch.Generator().manual_seed(0)),
    lambda w: torch._foreach_mul([w, w], [w, w])[1],
    lambda w: w.detach().clone().mul_(2.0),
    lambda w: torch.autograd.grad(w.square().sum(), [w])[0],
    lambda w: w.flatten().topk(3).values,
]
REFUSED: list[Hook] = [
    lambda w: w * torch.ones(4, 3),
    lambda w: w + torch.linspace(0.0, 1.0, 3),
    lambda w: torch._foreach_mul([w], [torch.ones(4, 3)]),
    lambda w: torch.stack([w.sum(), torch.tensor(1.0)]),
    lambda w: torch.cat([w.flatten(), torch.zeros(1)]),
    lambda w: w.cpu() * w,
    lambda w: w * torch.rand(w.shape, generator=torch.Generator()),
    lambda w: w.index_select(0, torch.arange(2)),
]


@pytest.mark.parametrize("number", range(len(FINE)))
def test_what_a_gpu_takes_has_the_values_of_the_cpu(number: int) -> None:
    hook = FINE[number]
    expected = hook(VALUES.clone().requires_grad_())
    with as_on_gpu():
        found = hook(Placed(VALUES.clone()).requires_grad_())
    assert isinstance(found, Placed)
    torch.testing.assert_close(found.detach().cpu(), expected.detach())


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_a_gpu_refuses_is_refused(number: int) -> None:
    with as_on_gpu(), pytest.raises(WrongDevice, match="CPU tensor of shape"):
        REFUSED[number](Placed(VALUES.clone()))


class ByChecksum(Twice):
    """Scores drawn from a seed for each name, the same in every process."""

    def scores(self, step: PruningStep) -> dict[str, Tensor]:
        return {
            name: torch.rand(w.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            for name, w in step.weights.items()
        }


class NamesALayer(Twice):
    """The classifier's scores are doubled."""

    def scores(self, step: PruningStep) -> dict[str, Tensor]:
        found = super().scores(step)
        return found | {"fc.weight": 2.0 * found["fc.weight"]}


@pytest.mark.slow
def test_what_follows_from_names_alone_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "test_placed", sys.modules[__name__])
    monkeypatch.setattr(ByChecksum, "__module__", "test_placed")
    assert tried(METHOD_RULES, "hashes_decide_nothing", MethodCase(ByChecksum)).state == "pass"


def test_a_method_that_names_a_layer_cannot_be_tried_under_other_names() -> None:
    outcome = tried(METHOD_RULES, "hashes_decide_nothing", MethodCase(NamesALayer))
    assert (outcome.state, "KeyError: 'fc.weight'" in outcome.finding) == ("skipped", True)
