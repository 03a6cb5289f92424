"""CIFAR's networks, against the papers' figures and against a forward pass written down a second time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from image_files import pickled, publish, write
from safetensors.torch import load_file, save_file
from tiny import assert_equal, rows, tiny_config, tiny_setup
from torch import Tensor

from sparsekit.cli import main
from sparsekit.config.options import ModelConfig, ReplicasConfig
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import UserError
from sparsekit.executors import stacked as vectorized
from sparsekit.launch import fit
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.create import build_model, save_model
from sparsekit.pruning.masks import prunable_names

NAMES = ["cifar_resnet18", "cifar_resnet20", "cifar_resnet56", "cifar_wrn28_10"]
SMALL: dict[str, dict[str, Any]] = {"cifar_wrn28_10": {"depth": 10, "widen": 2}, "cifar_resnet56": {"depth": 14}}
INPUTS = InputConfig(3, (32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def small(name: str, **kwargs: Any) -> Any:
    """A network, thinner or less deep where the real one is large, with statistics that a mistake would show in."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL.get(name, {}), **kwargs}).eval()
    for tensor_name, tensor in model.state_dict().items():
        if "bn" in tensor_name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


# --- counted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),  # arXiv 1512.03385 table 6, 1605.07146 table 4
    [("cifar_resnet20", "0.27"), ("cifar_resnet56", "0.85"), ("cifar_wrn28_10", "36.5")],
)
def test_parameters_are_as_many_as_the_papers_say(name: str, millions: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    digits = len(millions.partition(".")[2])
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.{digits}f}" == millions


def test_layers_are_as_many_as_the_names_say() -> None:
    """ResNets count the last layer and not the shortcuts' convolutions; WRN-28 is 28 convolutions."""
    for name, depth in (("cifar_resnet18", 18), ("cifar_resnet20", 20), ("cifar_resnet56", 56), ("cifar_wrn28_10", 28)):
        with torch.device("meta"):
            model = timm.create_model(name)
        shapes = [tuple(model.get_parameter(weight).shape) for weight in prunable_names(model)]
        counted = [len(shape) == 4 if depth == 28 else shape[2:] != (1, 1) for shape in shapes]
        assert sum(counted) == depth, name


def test_resnet18_is_timms_but_for_its_stem() -> None:
    mine, timms = (timm.create_model(name, num_classes=10).state_dict() for name in ("cifar_resnet18", "resnet18"))
    assert {k: v.shape for k, v in mine.items() if k != "conv1.weight"} == {
        k: v.shape for k, v in timms.items() if k != "conv1.weight"
    }
    assert mine["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(("kwargs", "wrong"), [({"depth": 21}, "21 is not 6 n"), ({"depth": 2}, "2 is not 6 n")])
def test_a_depth_that_no_network_has_is_the_users_error(kwargs: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        build_model(ModelConfig("cifar_resnet20", kwargs=kwargs), 10, 3, 0)


# --- computed ----------------------------------------------------------------------------------------


def normalised(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, var = w[f"{name}.running_mean"].view(shape), w[f"{name}.running_var"].view(shape)
    return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def resnet(x: Tensor, w: dict[str, Tensor], blocks: int, seen: list[tuple[int, ...]]) -> Tensor:
    """Section 4.2 of arXiv 1512.03385, from weights by name."""
    x = normalised(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normalised(F.conv2d(x, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.bn1").relu()
            y = normalised(F.conv2d(y, w[f"{at}.conv2.weight"], padding=1), w, f"{at}.bn2")
            if stride == 2:  # as many channels of zeros before as behind
                old = F.avg_pool2d(x, 1, 2)  # every other pixel
                x = torch.zeros_like(y)
                quarter = y.shape[1] // 4
                x[:, quarter : 3 * quarter] = old
            x = (x + y).relu()
        seen.append(tuple(x.shape[1:]))
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def wide(x: Tensor, w: dict[str, Tensor], blocks: int, seen: list[tuple[int, ...]]) -> Tensor:
    """Table 1 and figure 1b of arXiv 1605.07146, from weights by name."""
    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            before = normalised(x, w, f"{at}.bn1").relu()
            y = normalised(F.conv2d(before, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.bn2").relu()
            y = F.conv2d(y, w[f"{at}.conv2.weight"], padding=1)
            x = y + (F.conv2d(before, w[f"{at}.shortcut.weight"], stride=stride) if block == 0 else x)
        seen.append(tuple(x.shape[1:]))
    return normalised(x, w, "bn2").relu().mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize(
    ("name", "again", "blocks", "widths"),
    [
        ("cifar_resnet20", resnet, 3, (16, 32, 64)),
        ("cifar_resnet56", resnet, 2, (16, 32, 64)),
        ("cifar_wrn28_10", wide, 1, (32, 64, 128)),
    ],
)
def test_the_forward_pass_is_the_papers(name: str, again: Any, blocks: int, widths: tuple[int, ...]) -> None:
    model, images, seen = small(name), torch.randn(3, 3, 32, 32), []
    with torch.no_grad():
        expected = again(images, model.state_dict(), blocks, seen)
        assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert seen == [(width, side, side) for width, side in zip(widths, (32, 16, 8), strict=True)]
    assert model.forward_features(images).shape[1:] == seen[-1]


def test_the_real_wide_network_is_the_small_one_made_larger() -> None:
    with torch.device("meta"):
        real = timm.create_model("cifar_wrn28_10")
        features = real.forward_features(torch.empty(1, 3, 32, 32))
    assert features.shape == (1, 640, 8, 8)
    assert [len(stage) for stage in (real.layer1, real.layer2, real.layer3)] == [4, 4, 4]


# --- as timm's models are ----------------------------------------------------------------------------


def test_timm_lists_them() -> None:
    assert timm.list_models("cifar_*") == NAMES
    assert timm.list_models(module="cifar") == NAMES
    assert timm.list_models("cifar_*", pretrained=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_they_are_timm_models(name: str) -> None:
    model = small(name, num_classes=7, in_chans=1)
    images = torch.randn(2, 1, 32, 32)
    assert model(images).shape == (2, 7)
    said = model.pretrained_cfg
    assert model.default_cfg is said
    assert (said["architecture"], said["num_classes"], said["input_size"]) == (name, 10, (3, 32, 32))
    assert model.get_submodule(said["first_conv"]).weight.shape[1] == 1
    assert model.get_submodule(said["classifier"]) is model.get_classifier()
    data = timm.data.resolve_data_config({}, model=model)
    assert data["mean"] == pytest.approx((0.4914, 0.4822, 0.4465))
    assert data["std"] == pytest.approx((0.2470, 0.2435, 0.2616))
    assert tuple(model.forward_features(images).shape[2:]) == said["pool_size"]

    features = model.forward_features(images)
    assert features.shape[1] == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model.get_classifier()(pooled))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0, "max")
    assert torch.equal(model(images), features.amax((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(images), features)


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_sizes_that_are_said(name: str) -> None:
    model = timm.create_model(name, features_only=True, **SMALL.get(name, {}))
    found = [tuple(each.shape[1:]) for each in model(torch.zeros(1, 3, 32, 32))]
    info = model.feature_info
    said = zip(info.channels(), info.reduction(), strict=True)
    assert found == [(width, 32 // reduction, 32 // reduction) for width, reduction in said]


@pytest.mark.parametrize("name", NAMES)
def test_dropout_comes_before_the_classifier(name: str) -> None:
    model, images = small(name, drop_rate=0.5), torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    features = model.forward_features(images)
    model.train()
    half = model.forward_head(features, pre_logits=True)
    whole = features.mean((2, 3))
    assert 0.2 < float((half == 0).float().mean()) < 0.8
    assert torch.allclose(half[half != 0], 2 * whole[half != 0], rtol=1e-4)


def test_checkpointed_gradients_are_the_same() -> None:
    model, images = small("cifar_resnet20"), torch.randn(2, 3, 32, 32)
    found = []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        model.zero_grad()
        model(images).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert_equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_one_comes_back_by_sparsekit_and_by_timm(name: str, tmp_path: Path) -> None:
    config = ModelConfig(name, kwargs=SMALL.get(name, {}))
    model = build_model(config, 100, 3, 1)
    save_model(model, config, INPUTS, tmp_path)
    again = build_model(ModelConfig(f"local-dir:{tmp_path}", pretrained=True), 100, 3, 2)
    started = build_model(ModelConfig(init=str(tmp_path)), 100, 3, 3)
    timms = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for loaded in (again, started, timms):
        assert_equal(loaded.state_dict(), model.state_dict())
    adapted = build_model(ModelConfig(f"local-dir:{tmp_path}", pretrained=True), 10, 1, 2)
    assert adapted(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_plain_timm_needs_one_import(tmp_path: Path) -> None:
    config = ModelConfig("cifar_resnet20")
    save_model(build_model(config, 10, 3, 1), config, INPUTS, tmp_path)
    script = f"""
import timm

def load():
    return timm.create_model("local-dir:{tmp_path}", pretrained=True)

try:
    load()
except RuntimeError as error:
    print(error)
import sparsekit.models.cifar
print(type(load()).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "Unknown model (cifar_resnet20)\nCifarNet\n"


# --- in sparsekit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_wrn28_10"])
def test_replicas_are_stacked_and_compute_what_each_does_alone(name: str) -> None:
    model = ModelConfig(name, kwargs={"depth": 10, "widen": 1} if "wrn" in name else {"depth": 8})
    setup = tiny_setup(replicas=ReplicasConfig(count=2, start=0.0, executor="vectorized"), model=model)
    assert vectorized.obstacle(setup) == ""
    lockstep = vectorized.Lockstep(setup, 2)
    with torch.no_grad():
        for weight in lockstep.weights.values():
            weight[1] *= 1.5  # what each row computes must be its own
    for each in lockstep.models:
        each.train()
    images, _ = next(iter(setup.data.evaluation_batches("held_out")))
    stacked = torch.stack([images[:20], images[20:40]])
    logits = lockstep.forward(lockstep.weights, lockstep.buffers, stacked)
    logits.square().mean((1, 2)).sum().backward()
    for row, each in enumerate(lockstep.models):
        alone = each(stacked[row])
        assert torch.allclose(logits[row], alone, rtol=1e-3, atol=1e-5)
        each.zero_grad()
        alone.square().mean().backward()
        first = lockstep.weights["conv1.weight"].grad
        assert first is not None
        assert torch.allclose(first[row], each.conv1.weight.grad, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_fit_evaluate_merge_plan_and_export_know_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "cifar_resnet20"
    out = tmp_path / "run"
    fit(tiny_config(OneShot(), out=out, model=ModelConfig(name, kwargs={"depth": 8}), epochs=2))
    assert rows(out, "done")
    assert main.main(["evaluate", str(out)]) == 0
    assert main.main(["merge", str(out), str(out), "-o", str(tmp_path / "soup")]) == 0
    assert main.main(["plan", "--model.name", name]) == 0
    assert main.main(["export", str(out), "--format", "timm", "-o", str(tmp_path / "timm")]) == 0
    capsys.readouterr()


@pytest.mark.slow
def test_resnet20_is_exported_to_onnx_and_torch_and_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build_model(ModelConfig("cifar_resnet20"), 10, 3, 1).eval()
    save_file(model.state_dict(), tmp_path / "bare.safetensors")  # that there are ten classes is the name's to say
    file = tmp_path / "model.onnx"
    bare = ["export", str(tmp_path / "bare.safetensors"), "--model.name", "cifar_resnet20"]
    assert main.main([*bare, "--format", "onnx", "-o", str(file)]) == 0
    assert main.main([*bare, "--format", "torch", "-o", str(tmp_path / "model.pt2")]) == 0
    images = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model(images), rtol=1e-3, atol=1e-4)


def coloured(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Records as CIFAR-10 has them, [N, 3072], and labels: each class a colour of its own, under noise."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    palette = np.random.default_rng(0).integers(40, 216, (10, 3, 1))
    images = palette[labels] + chance.normal(0, 40, (count, 3, 1024))
    return images.clip(0, 255).astype(np.uint8).reshape(count, 3072), labels.astype(np.uint8)


@pytest.mark.slow
def test_the_config_of_resnet20_learns_from_files_in_cifars_own_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        write(folder / name, pickled(4)(*coloured(50, number + 1)))
    publish(monkeypatch, folder, 10)
    config = Path(__file__).parents[2] / "configs" / "cifar10_resnet20_gmp90_soup3.yaml"
    shorter = ["--epochs", "6", "--data.batch_size", "25", "--data.root", str(tmp_path / "data")]
    out, quiet = tmp_path / "run", ["--wandb.mode", "disabled", "--device", "cpu"]
    assert main.main(["fit", "--config", str(config), *shorter, *quiet, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test.accuracy"] > 0.5  # 0.1 by chance
    assert summary["parameters"] == 269_722
    prunable = 268_336
    masks = load_file(out / "masks.safetensors")
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.9 * prunable)
    stem, layers = 9 * 3 * 16 * 32**2, 9 * 16 * 16 * 32**2  # multiplications; a convolution of any stage has as many
    assert summary["flops.dense"] == 2 * (stem + (6 + 5.5 + 5.5) * layers + 64 * 10)
    assert [row["replicas"] for row in rows(out, "segment")][-1] == 3
    capsys.readouterr()
    assert main.main(["evaluate", str(out)]) == 0
    assert f"{100 * summary['test.accuracy']:.2f} %" in capsys.readouterr().out
