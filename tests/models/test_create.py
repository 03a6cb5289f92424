"""timm models in; directories that timm alone reads out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tiny import ARGUMENTS, KWARGS, assert_equal, differ, rows, tiny_setup

from sparsekit.cli import main
from sparsekit.config.options import ModelConfig
from sparsekit.data.inputs import InputConfig
from sparsekit.errors import UserError
from sparsekit.models.create import build_model, save_model

TINY = ModelConfig(kwargs=KWARGS)
INPUTS = InputConfig(1, (8, 8), (0.3,), (0.4,))

# What a user runs who has never heard of sparsekit. Importing None raises ImportError.
LOAD = """
import sys
sys.modules["sparsekit"] = None
import timm, torch
from safetensors.torch import load_file, save_file
directory, images, logits, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
with torch.no_grad():
    save_file({"logits": model(load_file(images)["images"])}, logits)
assert not any(name.partition(".")[0] == "sparsekit" for name in sys.modules if sys.modules[name] is not None)
"""


def test_names_and_arguments_reach_timm() -> None:
    model = build_model(ModelConfig("resnet26t", kwargs={"layers": [1, 1, 1, 1], "stem_width": 8}), 7, 1, 0)
    expected = timm.create_model("resnet26t", layers=(1, 1, 1, 1), stem_width=8, num_classes=7, in_chans=1)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_lists_become_tuples_however_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML and JSON have lists only, and timm asks some arguments whether they are tuples."""
    model = build_model(ModelConfig("test_vit", kwargs={"img_size": [16, 32], "patch_size": [8, 8]}), 4, 3, 0)
    assert model(torch.zeros(1, 3, 16, 32)).shape == (1, 4)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: seen.update(kwargs) or torch.nn.Identity())
    build_model(ModelConfig("resnet18", kwargs={"a": [1, [2, {"b": [3]}]], "c": "d"}), 4, 3, 0)
    assert (seen["a"], seen["c"]) == ((1, (2, {"b": (3,)})), "d")


def test_the_default_model_takes_arguments_on_top() -> None:
    model = build_model(ModelConfig(kwargs={"channels": [8, 8, 8, 8]}), 10, 1, 0)
    assert_equal(model.state_dict(), build_model(TINY, 10, 1, 0).state_dict())
    whole = build_model(ModelConfig(), 10, 1, 0)
    assert sum(p.numel() for n, p in whole.named_parameters() if p.ndim > 1) == 242_400


def test_random_weights_follow_from_the_seed_alone() -> None:
    first = build_model(TINY, 10, 1, 5).state_dict()
    torch.randn(17)
    assert_equal(first, build_model(TINY, 10, 1, 5).state_dict())
    assert differ(first, build_model(TINY, 10, 1, 6).state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("resnet81"), r"--model.name 'resnet81' is not a timm model. Did you mean 'resnet"),
        (ModelConfig("resnet18.nowhere"), r"--model.name resnet18.nowhere .*nowhere"),
        (
            ModelConfig("resnet18", kwargs={"depht": 3}),
            r"--model.name resnet18 with --model.kwargs {'depht': 3}: .*depht",
        ),
        (ModelConfig("resnet18", kwargs={"num_classes": 3}), r"--model.kwargs {'num_classes': 3}: .*num_classes"),
        (ModelConfig(kwargs={"layers": "many"}), r"--model.kwargs .*many"),
        (ModelConfig("local-dir:/nowhere"), r"--model.name 'local-dir:/nowhere': no config.json there"),
    ],
)
def test_what_timm_refuses_is_the_users_error_in_one_line(config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(config, 10, 1, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_pretrained_weights_without_a_network(tmp_path: Path) -> None:
    arguments = ["fit", "--model.name", "resnet18", "--model.pretrained", "true", "--out", str(tmp_path / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "sparsekit", *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sparsekit: error: --model.pretrained: no weights for 'resnet18': ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- saving -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_gives_the_same_logits_where_sparsekit_is_not_installed(tiny_run: Path, tmp_path: Path) -> None:
    out, summary = tiny_run, json.loads((tiny_run / "summary.json").read_text())
    test = list(tiny_setup(channels_last=False).data.evaluation_batches("test"))
    images, labels = (torch.cat(parts) for parts in zip(*test, strict=True))
    model = build_model(TINY, 10, 1, 0).eval()
    model.load_state_dict(load_file(out / "model" / "model.safetensors"))
    with torch.no_grad():
        expected = model(images)
    save_file({"images": images}, tmp_path / "images.safetensors")
    arguments = [
        out / "model",
        tmp_path / "images.safetensors",
        tmp_path / "logits.safetensors",
        torch.get_num_threads(),
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)], check=True, env={**env, "HF_HUB_OFFLINE": "1"}, cwd=tmp_path
    )
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.equal(logits, expected)
    assert logits.shape == (1000, 10)
    assert int((logits.argmax(1) == labels).sum()) / 1000 == summary["test.accuracy"]


@pytest.mark.parametrize("name", [None, "test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_saved_models_load_in_timm_and_hold_no_pickle(tmp_path: Path, name: str | None) -> None:
    kwargs = {"img_size": [32, 32], "patch_size": 8} if name == "test_vit" else {} if name else KWARGS
    config = ModelConfig(name, kwargs=kwargs)
    model = build_model(config, 5, 3, 1).to(memory_format=torch.channels_last)
    inputs = InputConfig(3, (32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_model(model, config, inputs, tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "model.safetensors"]
    assert_equal(
        dict(sorted(load_file(tmp_path / "model.safetensors").items())), dict(sorted(model.state_dict().items()))
    )

    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert type(loaded) is type(model)
    assert_equal(loaded.state_dict(), model.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))
    # timm's own way to the right preprocessing
    data = timm.data.resolve_data_config({}, model=loaded)
    assert tuple(data["input_size"]) == (3, 32, 32)
    assert (tuple(data["mean"]), tuple(data["std"]), data["crop_pct"]) == (inputs.mean, inputs.std, 1.0)


def test_saving_says_nothing_of_other_peoples_weights(tmp_path: Path) -> None:
    config = ModelConfig("resnet18", kwargs=KWARGS)
    save_model(build_model(config, 10, 1, 0), config, INPUTS, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architecture"] == "resnet18"
    assert written["num_classes"] == 10
    gone = {"url", "hf_hub_id", "license", "origin_url", "paper_ids", "tag", "test_input_size", "test_crop_pct", "file"}
    assert not gone & set(written["pretrained_cfg"])


# --- starting from a directory ----------------------------------------------------------------------


@pytest.fixture
def timms_own(tmp_path: Path) -> Path:
    """A directory that timm saved, sparsekit not involved."""
    torch.manual_seed(3)
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    directory = tmp_path / "timm"
    arguments = {"in_chans": 1, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
    return directory


def test_a_run_starts_from_a_directory_that_timm_saved(tmp_path: Path, timms_own: Path) -> None:
    stored = load_file(timms_own / "model.safetensors")
    setup = tiny_setup(model=ModelConfig(f"local-dir:{timms_own}", pretrained=True))
    assert_equal(dict(sorted(setup.model.state_dict().items())), dict(sorted(stored.items())))
    fresh = tiny_setup(model=ModelConfig(f"local-dir:{timms_own}"))
    assert differ(stored, fresh.model.state_dict())

    out = tmp_path / "run"
    name = ["--model.name", f"local-dir:{timms_own}", "--model.pretrained", "true", "--model.kwargs", "{}"]
    assert main.main(["fit", *ARGUMENTS, *name, "--method", "oneshot", "--epochs", "2", "--out", str(out)]) == 0
    assert rows(out, "done")
    # and its result is again one that timm loads
    loaded = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    assert_equal(
        dict(sorted(loaded.state_dict().items())), dict(sorted(load_file(out / "model/model.safetensors").items()))
    )


@pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.31"), reason="that timm adapts weights for three channels only"
)
def test_pretrained_weights_are_adapted_to_other_classes_and_channels(timms_own: Path) -> None:
    model = build_model(ModelConfig(f"local-dir:{timms_own}", pretrained=True), 4, 3, 0)
    stored = load_file(timms_own / "model.safetensors")
    assert model.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    assert torch.equal(model.get_parameter("layer1.0.conv1.weight"), stored["layer1.0.conv1.weight"])


def test_a_directory_without_weights_is_the_users_error(timms_own: Path) -> None:
    (timms_own / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"--model.name 'local-dir:.*': no model.safetensors there"):
        build_model(ModelConfig(f"local-dir:{timms_own}", pretrained=True), 10, 1, 0)
