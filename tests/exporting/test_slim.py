"""`--format slim`: the network without its pruned channels, for timm, torch alone, onnxruntime and sparsekit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from resuming import QUIET, fit
from safetensors.torch import load_file, save_file

from sparsekit.cli.main import main
from sparsekit.config.options import ArchitectureConfig
from sparsekit.errors import RunError
from sparsekit.exporting import slim as slim_format
from sparsekit.exporting.model import load_export_model
from sparsekit.models.saved import open_saved_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resnet") / "run"
    assert fit(out, "--masks.pattern", "channels", "--sparsity", "0.5", "--data.limit", "300") == 0
    return out


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its LayerNorms normalise over channels that go."""
    out = tmp_path_factory.mktemp("convnext") / "run"
    options = ["--model.name", "test_convnext", "--data.image_size", "32", "--data.limit", "200", "--epochs", "6"]
    options += ["--masks.pattern", "channels", "--sparsity", "0.5", "--optimizer.lr", "0.05", "--replicas.count", "2"]
    assert main(["fit", *QUIET, "--out", str(out), *options]) == 0
    return out


def exported(run: Path, out: Path, *options: str) -> int:
    return main(["export", str(run), "--format", "slim", "-o", str(out), *options])


def logits_of(run: Path, images: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, and what a saved model makes of them by sparsekit's own reading."""
    export_model = load_export_model(open_saved_model("MODEL", run), ArchitectureConfig(), None)
    images = export_model.images if images is None else images
    with torch.no_grad():
        return images, export_model.model(images)


def loaded(folder: Path) -> torch.nn.Module:
    """The network as load.py beside it loads it."""
    spec = importlib.util.spec_from_file_location("loader", folder / "load.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()  # type: ignore[no-any-return]


@pytest.mark.parametrize("run", ["resnet", "convnext"])
def test_it_is_smaller_and_gives_the_masked_models_logits(
    run: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(run)
    assert exported(source, tmp_path / "slim") == 0
    images, expected = logits_of(source)
    bound = 1e-4 * max(1.0, float(expected.abs().max()))
    before, after = (load_file(path / "model.safetensors") for path in (source / "model", tmp_path / "slim"))
    small, big = (sum(t.numel() for t in each.values()) for each in (after, before))
    assert small < 0.65 * big
    assert not any(name.endswith(".kept") for name in after)
    with torch.no_grad():
        assert (loaded(tmp_path / "slim")(images) - expected).abs().max() <= bound
    assert (logits_of(tmp_path / "slim", images)[1] - expected).abs().max() <= bound
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "slim" / "model.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    assert (found - expected).abs().max() <= bound
    with pytest.raises(RuntimeError, match="size mismatch"):  # timm's arguments do not describe it
        timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True)


def test_timm_refuses_a_masked_model_whose_layernorms_leave_channels_out(convnext: Path) -> None:
    with pytest.raises(RuntimeError, match="kept"):
        timm.create_model(f"local-dir:{convnext / 'model'}", pretrained=True)


@pytest.mark.slow
def test_evaluate_merge_and_further_exports_take_it(resnet: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "slim"
    assert exported(resnet, folder) == 0
    assert main(["evaluate", str(folder), "-o", str(tmp_path / "slim.json")]) == 0
    assert main(["evaluate", str(resnet), "-o", str(tmp_path / "masked.json")]) == 0
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("slim.json", "masked.json"))
    assert one["variants"]["saved"]["test"]["accuracy"] == other["variants"]["saved"]["test"]["accuracy"]
    assert main(["merge", str(folder), str(folder), "-o", str(tmp_path / "soup")]) == 0
    images, expected = logits_of(folder)
    torch.testing.assert_close(logits_of(tmp_path / "soup", images)[1], expected)
    for name in ("onnx", "torch", "sparse"):
        assert main(["export", str(folder), "--format", name, "-o", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["export", str(folder), "--format", "timm", "-o", str(tmp_path / "timm")]) == 2
    assert "--format slim" in capsys.readouterr().err
    assert exported(folder, tmp_path / "again") == 2
    assert "--masks.pattern channels" in capsys.readouterr().err


def test_a_slim_model_is_trained_further(resnet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slim"
    assert exported(resnet, folder) == 0
    options = ["--model.init", str(folder), "--epochs", "2", "--method", "oneshot", "--sparsity", "0"]
    arguments = [*QUIET, "--data.image_size", "8", "--data.limit", "100", "--out", str(tmp_path / "run")]
    assert main(["fit", *arguments, *options]) == 0
    one, other = load_file(folder / "model.safetensors"), load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in one.items()} == {n: t.shape for n, t in other.items()}
    logits_of(tmp_path / "run")
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert "slim" not in card["model_args"]


def test_merged_masked_models_follow_their_channels(convnext: Path, tmp_path: Path) -> None:
    """A union of masks is one of the norms' channels, too."""
    other = tmp_path / "other"
    shutil.copytree(convnext, other)
    tensors = load_file(other / "model" / "model.safetensors")
    name = next(name for name in tensors if name.endswith(".kept") and not tensors[name].all())
    tensors[name] = ~tensors[name]
    save_file(tensors, other / "model" / "model.safetensors", {"format": "pt"})
    assert main(["merge", str(convnext), str(other), "-o", str(tmp_path / "soup")]) == 0
    assert load_file(tmp_path / "soup" / "model.safetensors")[name].all()


def test_timm_loads_what_its_arguments_can_say(tmp_path: Path, capsys: Capture) -> None:
    """All blocks of a stage with half their channels, and the stem with all: `channels` of timm's ResNet."""
    run = tmp_path / "run"
    options = ["--masks.pattern", "channels", "--masks.allocation", "uniform", "--masks.exclude", "[^conv1]"]
    assert fit(run, *options, "--sparsity", "0.665", "--data.limit", "100", "--method", "oneshot") == 0
    assert exported(run, tmp_path / "slim") == 0
    assert "timm loads it" in capsys.readouterr().out
    images, expected = logits_of(run)
    made = timm.create_model(f"local-dir:{tmp_path / 'slim'}", pretrained=True).eval()
    assert json.loads((tmp_path / "slim" / "config.json").read_text())["model_args"]["channels"] == [4, 4, 8, 8]
    with torch.no_grad():
        torch.testing.assert_close(made(images), expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_pruned_channels_is_refused(tiny_run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert exported(tiny_run, tmp_path / "slim") == 2
    assert "--masks.pattern channels" in capsys.readouterr().err
    assert not (tmp_path / "slim").exists()


def test_an_onnx_file_with_other_logits_is_no_export(resnet: Path, tmp_path: Path) -> None:
    assert exported(resnet, tmp_path / "slim") == 0
    export_model = load_export_model(open_saved_model("MODEL", resnet), ArchitectureConfig(), None)
    shifted = load_export_model(open_saved_model("MODEL", resnet), ArchitectureConfig(), None)
    with torch.no_grad():
        shifted.model.get_parameter("fc.bias").add_(1.0)
    (tmp_path / "slim" / "model.onnx").unlink()
    slim_format.onnx_file.write(shifted, tmp_path / "slim" / "model.onnx")
    with pytest.raises(RunError, match=r"model\.onnx"):
        slim_format.load(tmp_path / "slim", export_model)


@pytest.mark.slow
def test_it_is_measured_in_torch_and_onnxruntime(resnet: Path, tmp_path: Path, capsys: Capture) -> None:
    assert exported(resnet, tmp_path / "slim", "--measure") == 0
    told = capsys.readouterr().out
    for part in ("torch, 1 thread", "onnxruntime, 1 thread", "images/s", "ms an image", "peak memory", "parameters"):
        assert part in told
