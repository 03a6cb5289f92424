"""Weights into a model: what fits, what does not and why, and new classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from tiny import KWARGS

from sparsekit.config.options import ModelConfig
from sparsekit.errors import UserError
from sparsekit.models.create import build_model, initial_masks, load_model
from sparsekit.models.fill import classifiers, fit_names
from sparsekit.models.saved import open_saved_model

SMALL = {"num_classes": 10, "in_chans": 1, **KWARGS}
UNFIT = {
    "7 classes against 10|--model.new_head": ("resnet18", {**SMALL, "num_classes": 7}),
    "fc.weight|classifier|--model.new_head": ("resnet18", {**SMALL, "num_classes": 0}),
    "conv1.weight|3 (colour) against 1 (grey)": ("resnet18", {**SMALL, "in_chans": 3}),
    "4 against 1 (grey) channels": ("resnet18", {**SMALL, "in_chans": 4}),
    "another architecture|lacks conv1.weight|has cls_token|0 of|--model.name": ("test_vit", {"num_classes": 10}),
    "layer1.1.conv1.weight|80 of|saved by other code|--model.kwargs": ("resnet18", {**SMALL, "layers": [2, 2, 1, 1]}),
    "layer1.0.conv1.weight|more differ|--model.kwargs": ("resnet18", {**SMALL, "channels": [4, 8, 8, 8]}),
}


@pytest.mark.parametrize("words", UNFIT)
def test_weights_that_do_not_fit_are_told_apart(words: str, tmp_path: Path) -> None:
    name, arguments = UNFIT[words]
    torch.save(timm.create_model(name, **arguments).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig("resnet18", init=str(tmp_path / "m.pt"), kwargs=KWARGS), 10, 1, 0)
    assert all(word in str(caught.value) for word in ("--model.init", str(tmp_path), *words.split("|"))), caught.value
    assert ("another architecture" in str(caught.value)) == ("architecture" in words or "more differ" in words)


def test_values_that_mean_something_else_do_not_become_weights(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", **SMALL).state_dict()
    for wrong, words in ((torch.complex64, "complex64"), (torch.int64, "int64")):
        torch.save(state | {"bn1.bias": state["bn1.bias"].to(wrong)}, tmp_path / "m.pt")
        with pytest.raises(UserError, match=rf"bn1\.bias is torch\.{words}.*convert"):
            build_model(ModelConfig("resnet18", init=str(tmp_path / "m.pt"), kwargs=KWARGS), 10, 1, 0)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_resnet", ("fc",)),
        ("test_vit", ("head",)),
        ("test_convnext", ("head.fc",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("cifar_resnet20", ("fc",)),
    ],
)
def test_a_new_head_replaces_every_classifier_and_nothing_else(
    name: str, heads: tuple[str, ...], tmp_path: Path
) -> None:
    old = timm.create_model(name, num_classes=5)
    assert classifiers(old) == heads
    torch.save(old.state_dict(), tmp_path / "m.pt")
    config = ModelConfig(name, init=str(tmp_path / "m.pt"), new_head=True)
    new, fresh = build_model(config, 4, 3, 1).state_dict(), build_model(ModelConfig(name), 4, 3, 1).state_dict()
    for key, tensor in new.items():
        inside = key.startswith(tuple(f"{head}." for head in heads))
        assert torch.equal(tensor, fresh[key] if inside else old.state_dict()[key]), key


def test_what_timms_filter_leaves_out_is_said_and_what_it_leaves_in_is_refused(tmp_path: Path) -> None:
    """Older files of Swin have buffers that are computed today."""
    arguments = {"num_classes": 10, "img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    arguments |= {"patch_size": 2, "window_size": 4}
    state = timm.create_model("swin_tiny_patch4_window7_224", **arguments).state_dict()
    kwargs = {name: value for name, value in arguments.items() if name != "num_classes"}
    config = ModelConfig("swin_tiny_patch4_window7_224", init=str(tmp_path / "m.pt"), kwargs=kwargs)
    torch.save({"model": state | {"layers.0.blocks.0.attn_mask": torch.zeros(4, 16, 16)}}, tmp_path / "m.pt")
    model = build_model(config, 10, 3, 0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    (note,) = fit_names(open_saved_model("--model.init", tmp_path / "m.pt"), model).notes
    assert "layers.0.blocks.0.attn_mask" in note
    torch.save({"model": state | {"more.weight": torch.zeros(4)}}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"has more\.weight, which the model lacks"):
        build_model(config, 10, 3, 0)


def renamed(path: Path, head: str) -> Path:
    """A small ResNet whose classifier, of 7 classes, is called otherwise; or is not there."""
    state = timm.create_model("resnet18", **{**SMALL, "num_classes": 7}).state_dict()
    kept = {name.replace("fc.", f"{head}."): tensor for name, tensor in state.items() if head or "fc." not in name}
    torch.save(kept, path)
    return path


@pytest.mark.parametrize("head", ["head", "classifier.1", ""])
def test_a_classifier_of_another_name_is_another_classifier(head: str, tmp_path: Path) -> None:
    config = ModelConfig("resnet18", init=str(renamed(tmp_path / "m.pt", head)), kwargs=KWARGS)
    with pytest.raises(UserError, match=r"its classifier is another.*--model\.new_head true"):
        build_model(config, 10, 1, 0)
    model = build_model(replace(config, new_head=True), 10, 1, 0)
    assert torch.equal(model.get_parameter("conv1.weight"), torch.load(tmp_path / "m.pt")["conv1.weight"])
    source = open_saved_model("--model.init", tmp_path / "m.pt")
    (note,) = initial_masks(source, replace(config, new_head=True), model, ["conv1.weight", "fc.weight"])[1]
    assert ("not taken: " in note) == bool(head)
    assert head in note


def test_what_lies_in_modules_of_the_model_is_no_other_classifier(tmp_path: Path) -> None:
    """A deeper model's file holds all layers of a shallower one."""
    torch.save(timm.create_model("resnet18", **{**SMALL, "layers": [2, 1, 1, 1]}).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"has layer1\.1"):
        build_model(ModelConfig("resnet18", init=str(tmp_path / "m.pt"), new_head=True, kwargs=KWARGS), 10, 1, 0)


def test_a_file_without_a_classifier_is_no_model_to_measure(tmp_path: Path) -> None:
    source = open_saved_model("MODEL", renamed(tmp_path / "m.pt", ""))
    with pytest.raises(UserError, match="it has no classifier"):
        load_model(source, ModelConfig("resnet18", kwargs=KWARGS), 10, 1)
