"""Whole channels: which belong together, which go first, and that without them the network is the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsekit.config.channel_pattern import ChannelPattern
from sparsekit.errors import RunError, UserError
from sparsekit.evaluation import cost
from sparsekit.models import kept_norm, slim
from sparsekit.pruning import coupling, masks
from sparsekit.pruning.channels import Channels

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem of 6 channels, a block with 4 inner channels that adds to it, and a classifier."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = norm(6)
        self.first, self.inner = nn.Conv2d(6, 4, 1, bias=False), norm(4)
        self.second = nn.Conv2d(4, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.second(self.inner(self.first(x)).relu())
        return self.head(self.depthwise(x).relu().mean((2, 3)))


class Grouped(nn.Module):
    """A convolution of four groups of two channels, with GroupNorm over four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def found(model: nn.Module, pattern: str = "channels", target: str = "weights", **options: Any) -> Channels:
    model.eval()
    chosen = ChannelPattern.parse(pattern)
    assert chosen
    names = masks.prunable_names(model)
    return coupling.prepared(model, names, EXAMPLE, chosen, target, cost.flops, **options)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in masks.prunable_names(model)}


def cut(model: nn.Module, channels: Channels, kept: Sequence[np.ndarray]) -> nn.Module:
    """Zero the removed channels of a model by its masks, in place, and return the network without them."""
    axes = channels.axes(kept)
    with torch.no_grad():
        for name, mask in (channels.masks(kept, weights_of(model)) | channels.masks_beside(kept)).items():
            model.get_parameter(name).mul_(mask)
        for name, flags in channels.buffers(kept).items():
            model.get_buffer(name).copy_(flags)
    return slim.without(model, axes).eval()


def halves(channels: Channels) -> list[np.ndarray]:
    """Every second unit."""
    return [np.arange(group.size) % 2 == 0 for group in channels.groups]


def shuffled(model: nn.Module) -> nn.Module:
    """Random values in what begins as 0 or 1, which would hide a difference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and (tensor.dim() == 1 or not tensor.any()):
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn - 0.5 if name.endswith(("bias", "mean")) else drawn + 0.5)
    return model


# --- which belong together -----------------------------------------------------------------------------


def test_a_residual_addition_couples_what_it_adds() -> None:
    channels = found(Residual())
    stream, inner = channels.groups
    assert (stream.name, stream.size, inner.name, inner.size) == ("stem", 6, "first", 4)
    assert {(e.name, e.axis) for e in stream.entries} == {
        ("stem.weight", 0), ("stem.bias", 0), ("norm.weight", 0), ("norm.bias", 0), ("norm.running_mean", 0),
        ("norm.running_var", 0), ("first.weight", 1), ("second.weight", 0), ("second.bias", 0),
        ("depthwise.weight", 0), ("depthwise.bias", 0), ("head.weight", 1),
    }  # fmt: skip
    assert {(e.name, e.axis) for e in inner.entries} == {
        ("first.weight", 0), ("inner.weight", 0), ("inner.bias", 0), ("inner.running_mean", 0),
        ("inner.running_var", 0), ("second.weight", 1),
    }  # fmt: skip
    assert set(channels.beside) == {
        "stem.bias", "norm.weight", "norm.bias", "second.bias", "depthwise.bias", "inner.weight", "inner.bias",
    }  # fmt: skip
    assert "outputs" in channels.fixed["head"]
    assert "head" in str(channels)


def test_channels_of_groups_go_with_their_whole_group() -> None:
    (group,) = found(Grouped()).groups
    assert (group.size, group.width) == (4, 2)
    rows = {entry.name: entry.indices.tolist() for entry in group.entries}
    assert rows["first.weight"] == rows["norm.weight"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rows["grouped.weight"] == rows["head.weight"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_head_is_its_queries_keys_values_and_what_reads_them() -> None:
    model = timm.create_model("test_vit", num_classes=5, img_size=8, patch_size=4)
    heads = next(group for group in found(model).groups if group.name == "blocks.0.attn.qkv")
    width, number = model.blocks[0].attn.proj.in_features, model.blocks[0].attn.num_heads
    rows = {entry.name: entry.indices for entry in heads.entries}
    assert heads.size == number
    assert rows["blocks.0.attn.proj.weight"][1].tolist() == list(range(width // number, 2 * width // number))
    expected = [part * width + i for part in range(3) for i in range(width // number)]
    assert rows["blocks.0.attn.qkv.weight"][0].tolist() == expected == rows["blocks.0.attn.qkv.bias"][0].tolist()


def test_what_must_not_be_pruned_keeps_its_channels() -> None:
    model = Residual().eval()
    left = [name for name in masks.prunable_names(model) if name != "depthwise.weight"]
    channels = coupling.find(model, left, EXAMPLE)
    assert [group.name for group in channels.groups] == ["first"]
    assert "depthwise.weight" in channels.fixed["stem"]
    with pytest.raises(UserError, match="no channel") as error:  # both groups have a part of it
        coupling.find(model, [name for name in left if name != "second.weight"], EXAMPLE)
    assert "second.weight is not pruned" in str(error.value) or "depthwise" in str(error.value)


class Offset(nn.Module):
    """What its first layer makes goes through a function of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).softmax(1)).relu().mean((2, 3)))


def test_a_trace_that_does_not_hold_is_found_out() -> None:
    """Torch_pruning couples them, but the masked network would not be the one without the channels."""
    channels = found(Offset())
    assert [group.name for group in channels.groups] == ["second"]
    assert "differ" in channels.fixed["first"]


def test_without_torch_pruning_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError) as error:
        found(Residual())
    assert "sparsekit-soups[structured]" in str(error.value)
    assert "\n" not in str(error.value)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).detach()


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(UserError, match="channels"):
        found(Untraceable())


@pytest.mark.parametrize("text", ["channels:0", "channels:x", "channels:", "channels:-8", "channels:12345"])
def test_other_multiples_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="channels:8"):
        ChannelPattern.parse(text)
    assert ChannelPattern.parse("2:4") is None
    assert ChannelPattern.parse(None) is None
    assert str(ChannelPattern.parse("channels:8")) == "channels:8"


# --- the network without them --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.GroupNorm(2, n)])
def test_the_masked_network_is_the_one_without_the_channels(norm: Callable[[int], nn.Module]) -> None:
    model = shuffled(Residual(norm))
    channels = found(model)
    kept = [np.arange(group.size) > 0 for group in channels.groups]
    before = model(EXAMPLE)
    small = cut(model, channels, kept)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, model(EXAMPLE))


MODELS = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_vit", "test_efficientnet_gn"]
SLOW = [
    "test_coatnet", "test_convnext2", "test_convnext3", "test_efficientnet_evos", "test_efficientnet_ln",
    "test_mambaout", "test_maxvit", "test_nfnet", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos",
]  # fmt: skip


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_timms_networks(name: str) -> None:
    """In float32, with half the channels of each group, against plain forward passes of both networks."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    names = masks.prunable_names(model)
    channels = coupling.find(model, names, images[:1])
    kept_norm.hold(model, {path for group in channels.groups for path in group.norms})
    layers = {layer for group in channels.groups for layer in group.layers}
    matrices = {n.removesuffix(".weight") for n in names}
    assert matrices <= layers | channels.fixed.keys() | {n for n in matrices if n.endswith(".qkv")}
    shuffled(model)
    small = cut(model, channels, halves(channels))
    with torch.no_grad():
        expected, got = model(images), small(images)
    assert (expected - got).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_layernorm_counts_kept_channels_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6))
    x = torch.randn(4, 6)
    torch.testing.assert_close(_held(model)(x), model(x))
    held = _held(model)
    kept = torch.tensor([True, True, False, True, False, True])
    held[0].get_buffer("kept").copy_(kept)
    with torch.no_grad():
        held[0].weight.mul_(kept)
    alone = nn.LayerNorm(4)
    torch.testing.assert_close(held(x * kept)[:, kept], alone(x[:, kept]))
    with pytest.raises(RuntimeError, match="kept"):  # what does not know of it refuses the file
        model.load_state_dict(held.state_dict())
    kept_norm.plain(held[0])
    assert type(held[0]) is nn.LayerNorm
    model.load_state_dict(held.state_dict())


def _held(model: nn.Sequential) -> nn.Sequential:
    import copy

    made = copy.deepcopy(model)
    kept_norm.hold(made, ["0"])
    return made


# --- which go first ------------------------------------------------------------------------------------


def masked_fraction(given: dict[str, Tensor]) -> float:
    return sum(int((~mask).sum()) for mask in given.values()) / sum(mask.numel() for mask in given.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.33, 0.5, 0.62])
def test_as_many_go_as_fit_under_the_target_lowest_first(sparsity: float) -> None:
    """Against a loop that removes one unit after another and counts masked weights."""
    torch.manual_seed(2)
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: weight.abs() for name, weight in weights.items()}
    units = channels.unit_scores(scores, masks.full(weights))
    order = sorted((units[g][u], g, u) for g, group in enumerate(channels.groups) for u in range(group.size))
    kept = [np.ones(group.size, dtype=bool) for group in channels.groups]
    last = channels.masks(kept, weights)
    for _, g, u in order:
        if kept[g].sum() == 1:
            continue  # at least one stays
        kept[g][u] = False
        more = channels.masks(kept, weights)
        if masked_fraction(more) > sparsity:
            break
        last = more
    chosen = channels.select(scores, masks.full(weights), sparsity, "global")
    assert all(torch.equal(chosen[name], last[name]) for name in weights)
    assert channels.sparsity(chosen) == pytest.approx(masked_fraction(chosen), abs=1e-12)
    assert channels.check_masks(chosen, sparsity, 0.0) == ""


def test_a_units_score_is_the_mean_over_its_tensors_of_relative_means() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: torch.rand(weight.shape, dtype=torch.float64) - 0.3 for name, weight in weights.items()}
    _, inner = channels.unit_scores(scores, masks.full(weights))
    rows, columns = scores["first.weight"], scores["second.weight"]
    expected = (rows[2].mean() / rows.abs().mean() + columns[:, 2].mean() / columns.abs().mean()) / 2
    assert inner[2] == pytest.approx(float(expected))


def test_what_is_gone_stays_gone_unless_it_may_grow_back() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: weight.abs() for name, weight in weights.items()}
    first = channels.select(scores, masks.full(weights), 0.3, "global")
    turned = {name: -score for name, score in scores.items()}
    second = channels.select(turned, first, 0.5, "global")
    assert not any((second[name] & ~first[name]).any() for name in weights)
    again = channels.select(turned, masks.full(weights), 0.5, "global")
    assert any((again[name] & ~first[name]).any() for name in weights)
    with pytest.raises(RunError, match="are left"):
        channels.select(scores, first, 0.1, "global")


def test_infinite_scores_keep_and_nan_is_refused() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: torch.ones_like(weight) for name, weight in weights.items()}
    scores["first.weight"][3] = torch.inf
    chosen = channels.select(scores, masks.full(weights), 0.6, "global")
    assert channels.kept(chosen)[1][3]
    scores["first.weight"][0] = torch.nan
    with pytest.raises(RunError, match=r"first\.weight"):
        channels.select(scores, masks.full(weights), 0.5, "global")


def test_of_equal_scores_the_first_stay() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: torch.ones_like(weight) for name, weight in weights.items()}
    kept = channels.kept(channels.select(scores, masks.full(weights), 0.4, "global"))
    assert all(list(flags) == sorted(flags, reverse=True) for flags in kept)
    assert not all(flags.all() for flags in kept)


@pytest.mark.parametrize("rule", ["uniform", "erk", "lamp", "global"])
@pytest.mark.parametrize("pattern", ["channels", "channels:8"])
def test_allocations_and_multiples(rule: str, pattern: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[16, 32, 60, 104], in_chans=3, num_classes=9)
    channels, weights = found(model, pattern), weights_of(model)
    scores = {name: weight.abs() for name, weight in weights.items()}
    chosen = channels.select(scores, masks.full(weights), 0.5, rule)
    assert 0.4 < masked_fraction(chosen) <= 0.5
    assert channels.check_masks(chosen, 0.5, 0.0) == ""
    left = [int(flags.sum()) for flags in channels.kept(chosen)]
    if pattern == "channels:8":
        assert all(n % 8 == 0 or n == group.size for n, group in zip(left, channels.groups, strict=True))
    if rule == "uniform" and pattern == "channels":
        shares = [n / group.size for n, group in zip(left, channels.groups, strict=True)]
        assert max(shares) - min(shares) < 0.1


def test_a_floor_is_of_channels() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    scores = {name: weight.abs() for name, weight in weights.items()}
    assert channels.least(0.0) == [1, 1]
    assert channels.least(3) == [3, 3]
    assert channels.least(0.5) == [3, 2]
    kept = channels.kept(channels.select(scores, masks.full(weights), 0.9, "global", floor=3))
    assert [int(flags.sum()) for flags in kept] == [3, 3]
    with pytest.raises(UserError) as error:
        channels.check(3, 0.9)
    assert "--sparsity 0.9" in str(error.value)
    channels.check(0.0, 0.5)


def test_masks_of_single_weights_are_refused() -> None:
    model = Residual()
    channels, weights = found(model), weights_of(model)
    chosen = {name: weight.abs() > weight.abs().median() for name, weight in weights.items()}
    assert "step.select" in channels.check_masks(chosen, 0.5, 0.0)
    assert "too few" in channels.check_masks(masks.full(weights), 0.5, 0.0)
    some = channels.select({n: w.abs() for n, w in weights.items()}, masks.full(weights), 0.5, "global")
    assert "more than" in channels.check_masks(some, 0.2, 0.0)
    assert "fewer" in channels.check_masks(some, 0.5, 5)


# --- what is counted -----------------------------------------------------------------------------------


def counted(model: nn.Module, images: Tensor) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(images)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("make", [Residual, lambda: timm.create_model("test_vit", img_size=8, patch_size=4)])
def test_flops_and_parameters_are_those_of_the_network_without_them(make: Callable[[], nn.Module]) -> None:
    for target in ("parameters", "flops"):
        dense, model = make().eval(), make()
        channels, weights = found(model, target=target), weights_of(model)
        chosen = channels.select({n: w.abs() for n, w in weights.items()}, masks.full(weights), 0.4, "global")
        small = cut(model, channels, channels.kept(chosen))
        if target == "flops":
            real = 1 - counted(small, EXAMPLE) / counted(dense, EXAMPLE)
        else:
            real = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
        assert channels.sparsity(chosen) == pytest.approx(real, abs=1e-9)
        assert 0.2 < real <= 0.4
