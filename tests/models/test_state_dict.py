"""Which part of a file holds the weights, and under which names: as timm reads them, and without running a pickle."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import load_state_dict
from tiny import KWARGS, assert_equal
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekit.cli.main import main
from sparsekit.config.options import ModelConfig
from sparsekit.errors import UserError
from sparsekit.files import load_tensors
from sparsekit.models.create import build_model
from sparsekit.models.fill import fit_names
from sparsekit.models.saved import SavedModel, open_saved_model

TENSORS = {"conv.weight": torch.randn(2, 1, 3, 3), "bn.running_var": torch.rand(2), "fc.weight": torch.randn(3, 2)}
TENSORS |= {"bn.num_batches_tracked": torch.tensor(7), "fc.bias": torch.randn(3)}
OTHER = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}


def prefixed(prefix: str, tensors: dict[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def opened(content: object, path: Path) -> SavedModel:
    torch.save(content, path)
    return open_saved_model("MODEL", path).fitted(TENSORS)


def beside() -> dict[str, Any]:
    """What training scripts put beside the weights."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    args = argparse.Namespace(model="resnet18", out=Path("a/b"), lr=0.1, nested=argparse.Namespace(x=1))
    return {
        "args": args,
        "options": types.SimpleNamespace(when=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "history": np.arange(3.0),
        "optimizer": optimizer.state_dict(),
        "accuracy": torch.tensor(0.5),
    }


TIMM = {
    "state_dict": {"state_dict": TENSORS, **beside()},
    "model": {"model": TENSORS, **beside()},
    "ddp": {"state_dict": prefixed("module.")},
    "compiled": {"state_dict": prefixed("_orig_mod.")},
    "compiled ddp": {"state_dict": prefixed("_orig_mod.module.")},
    "ddp compiled": prefixed("module._orig_mod."),
    "ema": {"state_dict": OTHER, "state_dict_ema": TENSORS},
    "model_ema": {"model": OTHER, "model_ema": TENSORS, **beside()},
    "ema of another name": {"model": TENSORS, "ema": OTHER},
    "both": {"model": OTHER, "state_dict": TENSORS},
    "no ema": {"state_dict": TENSORS, "state_dict_ema": None},
    "ema alone": {"state_dict_ema": TENSORS, "epoch": 3},
    "bare": TENSORS,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", TIMM)
def test_what_timm_reads_is_read_as_timm_reads_it(name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pth.tar"
    torch.save(TIMM[name], path, _use_new_zipfile_serialization=not legacy)
    with torch.serialization.safe_globals([argparse.Namespace]):
        expected = load_state_dict(str(path), weights_only=False)
    assert_equal(
        dict(sorted(open_saved_model("MODEL", path).fitted(TENSORS).tensors().items())), dict(sorted(expected.items()))
    )
    assert_equal(expected, TENSORS)


SCRIPTS = {
    "model_state_dict": {"epoch": 3, "model_state_dict": TENSORS, "optimizer_state_dict": beside()["optimizer"]},
    "Lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{}]},
    "Lightning, net": {"state_dict": prefixed("net."), "callbacks": {"ModelCheckpoint": {"best": torch.ones(1)}}},
    "nested": {"model": {"state_dict": prefixed("module.model.")}},
    "blocks compiled": {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in TENSORS.items()},
    "FSDP": {"model": prefixed("_fsdp_wrapped_module.net._checkpoint_wrapped_module.")},
    "SWA": {"model": {"n_averaged": torch.tensor(4), **prefixed("module.")}},
    "any name": {"my_network": TENSORS, "optim": beside()["optimizer"], "epoch": 1},
    "Transformers": prefixed("timm_model."),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_other_scripts_save_is_found_by_its_content(name: str, tmp_path: Path) -> None:
    found = opened(SCRIPTS[name], tmp_path / "m.ckpt").tensors()
    assert_equal(dict(sorted(found.items())), dict(sorted(TENSORS.items())))


CHOICES = {
    "state_dict_ema|moving average|not taken: state_dict": {"state_dict": OTHER, "state_dict_ema": TENSORS},
    "state_dict|as timm|not taken: ema": {"state_dict": TENSORS, "ema": {"decay": 0.9, "shadow": OTHER}},
    "model|as timm|not taken: ema": {"model": TENSORS, "ema": OTHER},
    "ema.shadow|moving average|not taken: net": {"net": OTHER, "ema": {"decay": 0.9, "shadow": TENSORS}},
    "net|not taken: ema": {"net": TENSORS, "ema": {"shadow": {"conv.weight": OTHER["conv.weight"]}}},
    "model|not taken: teacher": {"model": TENSORS, "teacher": OTHER},
    "a.net": {"a": {"net": TENSORS}},
    "model.|not taken: criterion.weight": {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(3)}},
    "ema.|not taken: model.conv.weight and 4 more": prefixed("model.", OTHER) | prefixed("ema.module."),
}


@pytest.mark.parametrize("words", CHOICES)
def test_a_choice_is_said_in_a_line(words: str, tmp_path: Path) -> None:
    model = opened(CHOICES[words], tmp_path / "m.pt")
    assert_equal(dict(sorted(model.tensors().items())), dict(sorted(TENSORS.items())))
    (note,) = model.notes
    assert all(word in note for word in (str(tmp_path / "m.pt"), *words.split("|"))), note


def test_evaluate_and_export_say_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS).state_dict()
    torch.save({"state_dict": prefixed("module.", state), "state_dict_ema": state}, tmp_path / "m.pt")
    given = [str(tmp_path / "m.pt"), "--model.name", "resnet18", "--data.name", "digits", "--data.image_size", "8"]
    kwargs = ["--model.kwargs", json.dumps({**KWARGS, "num_classes": 10, "in_chans": 1})]
    for command in (["evaluate"], ["export", "--format", "timm", "-o", str(tmp_path / "out")]):
        assert main([command[0], *given, *kwargs, *command[1:]]) == 0
        assert "weights: state_dict_ema" in capsys.readouterr().out
    assert_equal(
        dict(sorted(load_tensors(tmp_path / "out" / "model.safetensors").items())), dict(sorted(state.items()))
    )


def test_where_there_is_no_choice_nothing_is_said(tmp_path: Path) -> None:
    for content in (TENSORS, {"state_dict": prefixed("module."), "epoch": 1, **beside()}):
        assert not opened(content, tmp_path / "m.pt").notes


class Payload:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("RAN",)


def cycle() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["model"] = inner
    return inner


NO_MODEL: dict[str, object] = {
    "student, teacher|save the state dict of one": {"student": TENSORS, "teacher": OTHER},
    "model., teacher.|save the state dict of one": prefixed("model.") | prefixed("teacher."),
    "torch.nn.modules.linear.Linear|state dict": {"model": nn.Linear(2, 2)},
    "mkdir|unpickled": {"state_dict": TENSORS, "args": Payload()},
    "'epoch' is int|state_dict()": TENSORS | {"epoch": 3},
    "state dict": [TENSORS],
    "not a state dict|": cycle(),
    "not a state dict||": {},
}


@pytest.mark.parametrize("words", NO_MODEL)
def test_a_file_without_one_model_is_refused_in_a_line_and_runs_no_code(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        opened(NO_MODEL[words], tmp_path / "m.pt")
    assert all(word in str(caught.value) for word in (f"MODEL {tmp_path / 'm.pt'}", *words.split("|"))), caught.value
    assert "\n" not in str(caught.value)
    assert not Path("RAN").exists()


def test_the_classes_beside_weights_are_allowed_for_the_call_alone(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):  # somebody else's stays
        before = set(torch.serialization.get_safe_globals())
        opened({"state_dict": TENSORS, **beside()}, tmp_path / "m.pt").names()
        assert set(torch.serialization.get_safe_globals()) == before


def test_batch_counts_that_old_files_lack_are_0(tmp_path: Path) -> None:
    old = {name: tensor for name, tensor in TENSORS.items() if name != "bn.num_batches_tracked"}
    found = opened(old, tmp_path / "m.pt").tensors()
    assert int(found.pop("bn.num_batches_tracked")) == 0
    assert_equal(dict(sorted(found.items())), dict(sorted(old.items())))


def test_masks_go_with_their_weights_to_other_names(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    prune.random_unstructured(model.fc, "weight", 0.5)
    torch.save(prefixed("model.module.", model.state_dict()), tmp_path / "m.pt")
    plain = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    found = fit_names(open_saved_model("MODEL", tmp_path / "m.pt"), plain)
    assert torch.equal(found.masks(["fc.weight"])["fc.weight"], model.fc.weight_mask.bool())


def test_a_models_own_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    names = {"block.module.weight": torch.ones(2), "block.module.bias": torch.ones(2), "head.weight": torch.ones(2)}
    torch.save({"state_dict": prefixed("module.", names)}, tmp_path / "m.pt")
    found = open_saved_model("MODEL", tmp_path / "m.pt").fitted(names)
    assert set(found.names()) == set(names)


def test_timms_own_filter_changes_older_files_as_timm_does(tmp_path: Path) -> None:
    """Here a position embedding for larger images, as a ViT's released weights have it."""
    large = timm.create_model("test_vit", num_classes=10, img_size=160)
    torch.save({"model": large.state_dict()}, tmp_path / "m.pt")
    config = ModelConfig("test_vit", init=str(tmp_path / "m.pt"), kwargs={"img_size": 64})
    model = build_model(config, 10, 3, 0)
    overlay = {"state_dict": large.state_dict(), "num_classes": 10}
    expected = timm.create_model(
        "test_vit", num_classes=10, img_size=64, pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert model.pos_embed.shape != large.pos_embed.shape
    assert_equal(dict(model.state_dict()), dict(expected.state_dict()))
    (note,) = fit_names(open_saved_model("MODEL", tmp_path / "m.pt"), model).notes
    assert "pos_embed" in note


@pytest.mark.filterwarnings("ignore")
def test_a_model_quantised_for_inference_is_named_as_such(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    torch.save(quantised.state_dict(), tmp_path / "m.pt")
    with pytest.raises(UserError, match="quantised"):
        open_saved_model("MODEL", tmp_path / "m.pt").names()
