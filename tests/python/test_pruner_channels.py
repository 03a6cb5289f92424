"""`sparsekit.Pruner` with whole channels, in a loop of one's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import sparsekit
from sparsekit.errors import UserError

STEPS = 20
EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str = "test_convnext") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5)


def pruner_of(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> sparsekit.Pruner:
    given = {"masks": {"pattern": "channels"}, "example": EXAMPLE, "method": "gmp", "sparsity": 0.5, **options}
    return sparsekit.Pruner(model, optimizer, epochs=1, steps_per_epoch=STEPS, **given)  # type: ignore[arg-type]


def take(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: sparsekit.Pruner, steps: int) -> None:
    generator = torch.Generator().manual_seed(pruner.done)
    model.train()
    for _ in range(steps):
        pruner.prune_if_due()
        images = torch.randn(4, 3, 32, 32, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_the_slim_network_is_the_pruned_one(name: str) -> None:
    model = network(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = pruner_of(model, optimizer)
    take(model, optimizer, pruner, STEPS)
    pruner.finish()
    assert 0.45 < pruner.sparsity <= 0.5
    small = pruner.slim().eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert not any(hasattr(layer, "kept") for layer in small.modules())


def test_norms_and_their_momentum_go_with_the_channels() -> None:
    model = network("test_resnet")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = pruner_of(model, optimizer)
    take(model, optimizer, pruner, STEPS)
    gone = ~pruner.masks["layer2.0.conv1.weight"].any(dim=(1, 2, 3))
    assert gone.any()
    for name in ("layer2.0.bn1.weight", "layer2.0.bn1.bias"):
        parameter = model.get_parameter(name)
        assert not parameter[gone].any()
        assert parameter[~gone].all()
        assert not optimizer.state[parameter]["exp_avg"][gone].any()
    pruner.finish()


def test_a_pruner_goes_on_from_its_state() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = pruner_of(model, optimizer)
    take(model, optimizer, pruner, 11)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    take(model, optimizer, pruner, STEPS - 11)
    pruner.finish()
    other = network()
    second = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    again = pruner_of(other, second)
    other.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    take(other, second, again, STEPS - 11)
    again.finish()
    for (name, one), (_, two) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


def test_it_needs_an_example_and_the_pattern() -> None:
    model = network("test_resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(UserError, match="example="):
        pruner_of(model, optimizer, example=None)
    with pytest.raises(UserError, match="sparsity"):
        pruner_of(model, optimizer, sparsity=0.99999)
    plain = pruner_of(model, optimizer, masks={})
    with pytest.raises(UserError, match="channels"):
        plain.slim()
