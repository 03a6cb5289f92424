"""Operations against layer shapes by hand, bytes against files."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsekit.evaluation import cost
from sparsekit.pruning import masks


def by_hand(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Two operations for each weight at each place where it is used, seen by hooks on every layer."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, answer: Tensor) -> None:
        places = (
            answer.shape[-2] * answer.shape[-1]
            if isinstance(layer, nn.Conv2d)
            else answer.numel() // layer.out_features
        )
        found[f"{name}.weight"] = found.get(f"{name}.weight", 0) + 2 * layer.weight.numel() * places

    handles = [
        layer.register_forward_hook(lambda layer, _, answer, name=name: count(name, layer, answer))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model.eval()(image)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "attention"),
    # twelve blocks of three heads of 64 features: queries by keys, and weights by values, 197 tokens each
    [("resnet18", 0), ("vit_tiny_patch16_224", 12 * 2 * 2 * 3 * 197 * 197 * 64)],
)
def test_operations_agree_with_the_layers_shapes(name: str, attention: int) -> None:
    model, image = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)
    kept = {
        key: torch.rand(model.get_parameter(key).shape, generator=generator) < 0.3
        for key in masks.prunable_names(model)
    }
    layers = by_hand(model, image)
    found = cost.flops(model, image, kept)
    assert found.layers == layers
    assert found.dense == sum(layers.values()) + attention
    sparse = attention + sum(layers[key] * int(mask.sum()) / mask.numel() for key, mask in kept.items())
    assert found.sparse == pytest.approx(sparse, rel=1e-6)
    full = cost.flops(model, image, {key: torch.ones_like(mask) for key, mask in kept.items()})
    assert full.sparse == full.dense == found.dense


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    found = cost.flops(Twice(), torch.zeros(1, 8), {"inner.weight": torch.arange(64).reshape(8, 8) % 4 == 0})
    assert (found.dense, found.sparse) == (2 * 2 * 64, 2 * 2 * 16)


def test_bytes_are_those_of_the_tensors_and_the_file(tmp_path: Path) -> None:
    weight, bias = torch.arange(20.0).reshape(4, 5), torch.ones(4)
    weight[2:] = 0.0
    save_file({"weight": weight, "bias": bias}, tmp_path / "model.safetensors")
    found = cost.sizes([weight, bias], {"weight": weight != 0}, tmp_path / "model.safetensors")
    assert (found["parameters"], found["nonzero"]) == (24, 9 + 4)  # 0 stands at the start too
    assert found["bytes.dense"] == 24 * 4
    assert found["bytes.compressed"] == 13 * 4 + 3  # 20 bits
    assert found["bytes.disk"] == (tmp_path / "model.safetensors").stat().st_size


def test_images_are_counted_for_all_replicas_and_along_the_longest() -> None:
    assert cost.training_images([(10,), (), (4, 8, 8)], 50) == {"images.total": 1500, "images.critical": 900}
