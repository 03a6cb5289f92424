"""How much of a model can be pruned is told with what cannot, and what zeros at the start are taken for."""

from __future__ import annotations

import timm
import torch
from timm.layers import ScaledStdConv2d
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sparsekit.pruning import masks
from sparsekit.pruning.coverage import coverage, matrices, of_zeros


class Zoo(nn.Module):
    """Layers whose weights can be pruned, 6 + 9 + 16, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(2, 3), nn.Conv2d(1, 1, 3)
        self.attention = nn.MultiheadAttention(4, 2)  # in: 3 · 16, out: 16
        self.standard = nn.Sequential(ScaledStdConv2d(2, 2, 1), ScaledStdConv2d(2, 4, 1))  # 4, 8
        self.normed = weight_norm(nn.Linear(5, 2))  # 10, and a norm a row
        self.spectral = spectral_norm(nn.Conv2d(2, 2, 1))  # 4
        self.embedding = nn.Embedding(5, 2)  # 10
        self.lstm = nn.LSTM(2, 1)  # 4 · 2, and 4 · 1, which is no matrix
        self.table = nn.Parameter(torch.ones(2, 3))  # 6
        self.gain = nn.Parameter(torch.ones(1, 4, 1))


def test_what_is_pruned_and_what_is_not_add_up_by_layer_and_reason() -> None:
    model = Zoo()
    found = coverage(model, masks.prunable_names(model))
    sizes = {kind: sum(layers.values()) for kinds in found.other.values() for kind, layers in kinds.items()}
    expected = {"MultiheadAttention": 48, "ScaledStdConv2d": 12, "Linear": 10, "Conv2d": 4, "Embedding": 10, "LSTM": 8}
    assert sizes == expected | {"Zoo": 6}
    assert found.prunable == 31
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.small
    text = str(found)
    parts = ("31 of", "2 ScaledStdConv2d (12)", "centre", "1 Linear (10)", "weight_norm", "1 LSTM (8)")
    assert all(part in text for part in parts)


def test_what_is_excluded_is_told_apart_from_what_cannot_be_pruned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    found = coverage(model, masks.prunable_names(model, ["^0"]))
    assert (found.prunable, dict(found.excluded), found.other, found.small) == (8, {"0.weight": 16}, {}, False)
    assert "--masks.exclude leaves out 16 in 0.weight" in str(found)


def test_a_network_of_standardised_convolutions_is_hardly_pruned_and_a_plain_one_almost_wholly() -> None:
    for name, small in (("nf_resnet26", True), ("resnet18", False), ("vit_tiny_patch16_224", False)):
        model = timm.create_model(name, num_classes=10)
        found = coverage(model, masks.prunable_names(model))
        by_hand = sum(model.get_parameter(n).numel() for n in masks.prunable_names(model))
        assert found.share == by_hand / sum(p.numel() for p in model.parameters())
        assert found.small == small, name


def test_matrices_have_two_sides() -> None:
    assert "gain" not in matrices(Zoo())
    assert {"table", "embedding.weight"} <= matrices(Zoo()).keys()


def test_zeros_are_told_by_what_becomes_of_them() -> None:
    keep, some, none = torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    full = keep.bool()
    assert of_zeros("--model.init x", {"a": keep}, {"a": full}, {"b": full}) == ([], [])
    notes, warnings = of_zeros("--model.init x", {"a": keep, "head": none}, {"a": full, "head": full}, {})
    assert warnings == []
    assert all(part in notes[0] for part in ("--model.init x", "head", "trained"))
    notes, warnings = of_zeros(
        "--model.init x", {"a": some, "head": none}, {"a": some.bool(), "head": full}, {"e": some.bool()}
    )
    assert all(part in notes[0] for part in ("3 of 8", "a"))
    assert all(part in warnings[0] for part in ("head", "masks.safetensors"))
    assert all(part in warnings[1] for part in ("e (3)", "trained again"))
