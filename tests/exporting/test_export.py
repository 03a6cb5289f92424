"""Exports: read back elsewhere, exact zeros, the same predictions, honest sizes and speeds."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cards import CLASSES, card_of, quartered
from safetensors import safe_open
from tiny import KWARGS, assert_equal, tiny_config
from torch import Tensor

from sparsekit.cli import main
from sparsekit.config.options import ArchitectureConfig, DataConfig, ExportConfig, ReplicasConfig
from sparsekit.data import load
from sparsekit.errors import RunError
from sparsekit.exporting import export, semi_structured, sparse, speed
from sparsekit.exporting.formats import Loaded
from sparsekit.exporting.model import ExportModel, load_export_model
from sparsekit.files import load_tensors, save_tensors
from sparsekit.launch import fit
from sparsekit.methods.gmp import GMP
from sparsekit.models import sparse_file
from sparsekit.models.saved import open_saved_model
from sparsekit.models.state import cpu_state_dict
from sparsekit.pruning import masks

Capture = pytest.CaptureFixture[str]
FASHION = Path("/usr/share/datasets/fashion-mnist")
CPU_FORMATS = ["timm", "onnx", "torch", "sparse"]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra `export`: onnx, onnxruntime and onnxscript",
)
each_format = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_onnx] if name == "onnx" else []) for name in CPU_FORMATS]
)


@pytest.fixture
def run(tiny_run: Path) -> Path:
    return tiny_run


def exported(run: Path, name: str, out: Path, *more: str) -> int:
    return main.main(["export", str(run), "--format", name, "-o", str(out), *more])


def read_elsewhere(name: str, out: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Tensor]]:
    """An export as its own library reads it, and its weights; nothing of sparsekit's but the sparse file's loader."""
    if name == "onnx":
        import onnx
        import onnxruntime
        from onnx import numpy_helper

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        stored = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in onnx.load(str(out)).graph.initializer}
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), stored
    if name == "torch":
        with out.open("rb") as file:
            program = torch.export.load(file)
        return program.module(), dict(program.state_dict)
    if name == "timm":
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    else:
        model = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
        model.load_state_dict(sparse_file.load(out))
        model.eval()
    return model, dict(model.state_dict())


def all_test_images(data: DataConfig) -> Tensor:
    loaded = load(data, torch.device("cpu"), channels_last=False)
    return torch.cat([images for images, _ in loaded.evaluation_batches("test")]).contiguous()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[needs_onnx, pytest.mark.slow] if name == "onnx" else []) for name in CPU_FORMATS],
)
def test_an_export_predicts_the_same_on_all_test_digits_and_keeps_every_zero(
    name: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "new" / "out"
    assert exported(run, name, out) == 0
    told = capsys.readouterr().out
    original = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    nonzero = sum(int((t != 0).sum()) for n, t in load_tensors(run / "model" / "model.safetensors").items() if t.dim())
    running = sum(int((t != 0).sum()) for n, t in original.named_buffers() if t.dim())
    assert f"nonzero     {nonzero - running:,} of 12,890 parameters" in told
    assert "no prediction differs" in told
    assert "on 1,000 test images" in told
    predict, stored = read_elsewhere(name, out)
    images = all_test_images(DataConfig(image_size=8))
    with torch.no_grad():
        ours, theirs = original(images), predict(images)
        assert len(images) == 1000
        assert torch.equal(ours.argmax(1), theirs.argmax(1))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for count in (1, 3, 64):  # any batch
            torch.testing.assert_close(predict(images[:count]), ours[:count], rtol=1e-4, atol=1e-4)
    weights, kept = load_tensors(run / "model" / "model.safetensors"), load_tensors(run / "masks.safetensors")
    for weight, mask in kept.items():
        assert torch.equal(stored[weight], weights[weight])
        assert not stored[weight][~mask].any()


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
@each_format
def test_an_export_predicts_the_same_on_all_of_fashion_mnist(name: str, fashion_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert exported(fashion_run, name, out) == 0
    images = all_test_images(DataConfig(name="fashion_mnist", root=str(FASHION)))
    original = timm.create_model(f"local-dir:{fashion_run / 'model'}", pretrained=True).eval()
    predict, stored = read_elsewhere(name, out)
    assert len(images) == 10_000
    with torch.no_grad():
        for part in images.split(500):
            assert torch.equal(original(part).argmax(1), predict(part).argmax(1))
    for weight, mask in load_tensors(fashion_run / "masks.safetensors").items():
        assert not stored[weight][~mask].any()


@pytest.fixture(scope="module")
def fashion_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fashion"
    data = DataConfig(name="fashion_mnist", root=str(FASHION), batch_size=500)
    fit(tiny_config(GMP(), out=out, data=data, epochs=2, replicas=ReplicasConfig(count=1)))
    return out


# --- what config.json says --------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--model.kwargs", "{drop_rate: 0.5}"]], ids=["as it is", "described anew"])
def test_an_export_is_compared_and_described_as_the_models_own_card_says(
    more: list[str], run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Data of another size and normalisation: an export that took these lost most of the accuracy, and said nothing."""
    quarter = quartered(run / "model", tmp_path / "q", crop_pct=0.9, interpolation="nearest")
    assert exported(quarter, "timm", tmp_path / "out", "--data.name", "digits", *more) == 0
    assert "no prediction differs" in capsys.readouterr().out
    before, after = (card_of(path)["pretrained_cfg"] for path in (quarter, tmp_path / "out"))
    for key in ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"):
        assert after[key] == before[key], key
    assert card_of(tmp_path / "out")["label_names"] == CLASSES
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = all_test_images(DataConfig(image_size=8)) * 4
    given = load_export_model(open_saved_model("MODEL", quarter), ArchitectureConfig(), DataConfig())
    torch.testing.assert_close(given.images, images)
    original = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images / 4))


@pytest.mark.parametrize(
    "name",
    ["timm", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow]), pytest.param("torch", marks=pytest.mark.slow)],
)
def test_every_format_is_compared_on_images_of_the_models_own(name: str, run: Path, tmp_path: Path) -> None:
    quarter = quartered(run / "model", tmp_path / "q")
    assert exported(quarter, name, tmp_path / "out", "--data.name", "digits", "--measure") == 0
    source = open_saved_model("MODEL", quarter)
    for data in (DataConfig(), None):
        found = load_export_model(source, ArchitectureConfig(), data)
        assert found.images.shape[1:] == (1, 8, 8)
        assert found.inputs.std == tuple(card_of(quarter)["pretrained_cfg"]["std"])


def test_what_the_user_sets_is_told_and_bare_weights_take_the_datas(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert exported(run, "timm", tmp_path / "one", "--data.image_size", "12") == 0
    assert "--data.image_size hold (12×12 pixels)" in capsys.readouterr().out
    assert card_of(tmp_path / "one")["pretrained_cfg"]["input_size"] == [1, 8, 8]
    arguments = ["--model.name", "resnet18", "--model.kwargs", json.dumps(KWARGS), "--data.image_size", "12"]
    assert exported(run / "model" / "model.safetensors", "timm", tmp_path / "two", *arguments) == 0
    assert "no mean and std" in capsys.readouterr().out
    card, data = card_of(tmp_path / "two"), load(DataConfig(image_size=12), torch.device("cpu"), channels_last=False)
    assert (card["pretrained_cfg"]["input_size"], card["label_names"]) == ([1, 12, 12], CLASSES)
    assert tuple(card["pretrained_cfg"]["mean"]) == data.mean


# --- the sparse file ---------------------------------------------------------------------------------


def test_a_95_per_cent_sparse_resnet_takes_12_per_cent_at_most_and_comes_back_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    names = masks.prunable_names(model)
    tensors = cpu_state_dict(model)
    weights = {name: tensors[name] for name in names}
    kept = masks.select({n: w.abs() for n, w in weights.items()}, masks.full(weights), 0.95, "global")
    tensors |= {name: weight.where(kept[name], 0.0) for name, weight in weights.items()}
    save_tensors(tmp_path / "dense.safetensors", tensors)
    sparse_file.save(tmp_path / "sparse.safetensors", tensors)
    dense, small = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("dense", "sparse"))
    print(f"{small:,} of {dense:,} bytes: {small / dense:.2%}")
    assert small <= 0.12 * dense
    loaded = sparse_file.load(tmp_path / "sparse.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype is tensor.dtype
        assert loaded[name].numpy().tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.003, 0.05, 0.12, 0.13, 0.5, 1.0])
def test_any_type_and_sparsity_comes_back_bit_by_bit(dtype: torch.dtype, kept: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(40, 7, 3, 3, generator=generator).mul_(100).to(dtype)
    tensor[torch.rand(tensor.shape, generator=generator) >= kept] = 0
    if dtype.is_floating_point:
        tensor.reshape(-1)[[0, 300, -1]] = torch.tensor([-0.0, float("nan"), float("inf")], dtype=dtype)
    given = {
        "weight": tensor,
        "empty": tensor[:0].clone(),
        "scalar": torch.tensor(0),
        "vector": tensor.reshape(-1)[:9].clone(),
    }
    sparse_file.save(tmp_path / "file", given)
    for name, back in sparse_file.load(tmp_path / "file").items():
        assert back.shape == given[name].shape
        assert back.dtype is dtype or name == "scalar"
        assert bytes(back.reshape(-1).view(torch.uint8)) == bytes(given[name].reshape(-1).view(torch.uint8))


def test_a_run_ends_with_zeros_without_a_sign_and_an_export_gives_others_theirs(run: Path, tmp_path: Path) -> None:
    file = run / "model" / "model.safetensors"
    weights, kept = load_tensors(file), load_tensors(run / "masks.safetensors")
    assert not any(weights[name][~mask].signbit().any() for name, mask in kept.items())
    assert exported(run, "sparse", tmp_path / "one") == 0
    back = sparse_file.load(tmp_path / "one")
    assert all(back[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in weights.items())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_bytes((run / "model" / "config.json").read_bytes())
    signed = {n: t.masked_fill(~kept[n], -0.0) if n in kept else t for n, t in weights.items()}
    save_tensors(foreign / "model.safetensors", signed)
    assert exported(foreign, "sparse", tmp_path / "two", "--data.image_size", "8") == 0
    assert (tmp_path / "one").stat().st_size == (tmp_path / "two").stat().st_size


@pytest.mark.slow
def test_the_reader_in_the_documentation_reads_what_is_written(run: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sparse-format.md").read_text()
    (found,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert "sparsekit" not in found
    assert exported(run, "sparse", tmp_path / "model.safetensors") == 0
    script = f"{found}\ntorch.save(model.state_dict(), 'out.pt')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=600)
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    assert_equal(dict(sorted(back.items())), dict(sorted(load_tensors(run / "model" / "model.safetensors").items())))


def test_a_sparse_file_can_be_started_from_and_exported_again(run: Path, tmp_path: Path) -> None:
    assert exported(run, "sparse", tmp_path / "one") == 0
    arguments = ["--model.name", "resnet18", "--model.kwargs", json.dumps(KWARGS | {"num_classes": 10, "in_chans": 1})]
    assert exported(tmp_path / "one", "timm", tmp_path / "two", *arguments, "--data.image_size", "8") == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'two'}", pretrained=True)
    weights = load_tensors(run / "model" / "model.safetensors")
    assert_equal(dict(sorted(model.state_dict().items())), dict(sorted(weights.items())))


# --- 2:4 ---------------------------------------------------------------------------------------------

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def half_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT whose linear layers keep 2 of 4, as a timm directory."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **VIT)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.reshape(-1, 4)[:, [0, 2]] = 0.0
    out = tmp_path_factory.mktemp("vit") / "model"
    timm.models.save_for_hf(model, out, model_args=VIT, safe_serialization=True)
    return out


def test_only_linear_layers_that_follow_the_pattern_are_packed(half_vit: Path) -> None:
    export_model = load_export_model(open_saved_model("MODEL", half_vit), ArchitectureConfig(), None)
    blocks = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert semi_structured.layers(export_model.model) == blocks  # the head has 10 rows
    with torch.no_grad():
        export_model.model.blocks[0].mlp.fc1.weight[3, 4:7] = 1.0  # type: ignore[index,union-attr]
    assert semi_structured.layers(export_model.model) == [name for name in blocks if name != "blocks.0.mlp.fc1"]
    with torch.no_grad():
        export_model.model.blocks[0].mlp.fc2.weight.zero_()  # type: ignore[index,union-attr]
    assert semi_structured.layers(export_model.model) == [name for name in blocks if "0.mlp" not in name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_2_to_4_on_a_machine_without_cuda_is_one_line(half_vit: Path, tmp_path: Path, capsys: Capture) -> None:
    assert exported(half_vit, "2:4", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "CUDA device" in err
    assert not (tmp_path / "out").exists()


class Transposed(torch.nn.Module):
    """A linear layer that is given a view, as attention gives its projection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 32)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images.transpose(0, 1))
        return result


def test_packed_layers_are_given_contiguous_input_and_name_themselves_where_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", lambda weight: weight)  # needs CUDA
    model, given = Transposed(), list[bool]()
    images = torch.randn(64, 5)
    expected = model(images)
    predict = semi_structured.packed(model, ["inner"])
    model.inner.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0].is_contiguous()))
    torch.testing.assert_close(predict(images), expected)
    assert given == [True]
    with pytest.raises(RunError, match=r"at or after inner \(Linear\): .*mat1 and mat2"):
        predict(images[:9])

    def refuse(weight: Tensor) -> Tensor:
        raise RuntimeError("no such shape\nand more")

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", refuse)
    with pytest.raises(RunError, match=r"^inner \(Linear\) cannot be packed: no such shape$"):
        semi_structured.packed(Transposed(), ["inner"])


@pytest.mark.cuda
def test_2_to_4_is_packed_and_predicts_as_the_dense_model(half_vit: Path, tmp_path: Path, capsys: Capture) -> None:
    assert exported(half_vit, "2:4", tmp_path / "out", "--measure") == 0
    told = capsys.readouterr().out
    assert "8 linear layers packed" in told
    assert "times as fast" in told
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True) is not None


# --- honesty -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow])])
def test_measure_says_what_the_zeros_gain_and_what_would(
    name: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 3)
    assert exported(run, name, tmp_path / "out", "--measure") == 0
    told = capsys.readouterr().out
    assert re.search(r"speed +\d+\.\d\d times as fast .* as the same export of a model without zeros", told)
    assert "the zeros gain nothing here" in told or "the zeros make it faster here" in told


def test_the_verdict_follows_the_ratio_and_names_a_pattern() -> None:
    ratio = speed.Ratio
    assert "faster here" in speed.verdict(ratio(1.4, 1.3, 1.5), "2:4")
    assert "--masks.pattern 2:4" in speed.verdict(ratio(1.01, 0.99, 1.02), "onnx")
    assert "gain nothing" in speed.verdict(ratio(1.2, 0.8, 1.6), "onnx")  # too noisy to be a gain


def test_timing_takes_turns_and_tells_twice_the_work_from_once(run: Path) -> None:
    turns: list[str] = []
    matrix = torch.randn(200, 200)

    def worker(name: str, rounds: int) -> Loaded:
        def predict(images: Tensor) -> Tensor:
            turns.append(name)
            for _ in range(rounds):
                images = matrix @ images
            return images

        return Loaded(predict, {})

    (ratio,) = speed.timed([worker("one", 40), worker("four", 160)], torch.zeros(200, 200))
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median > 1.5
    assert turns.count("one") == turns.count("four")


def test_images_are_placed_once_before_the_time_is_taken() -> None:
    placed: list[int] = []

    def place(images: Tensor) -> Tensor:
        placed.append(len(images))
        return images.half()

    def predict(images: Tensor) -> Tensor:
        assert images.dtype is torch.half
        return images * 2

    one = Loaded(predict, {}, place=place)
    speed.timed([one, Loaded(lambda images: images, {})], torch.zeros(7, 10))
    assert placed == [7]
    assert torch.equal(one.logits(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_the_model_without_zeros_has_none_and_is_otherwise_the_same(run: Path) -> None:
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    full = speed.filled(model)
    for (name, one), other in zip(model.named_parameters(), full.parameters(), strict=True):
        assert (other != 0).all(), name
        assert torch.equal(other[one != 0], one[one != 0])


def test_an_export_that_reads_back_otherwise_is_removed_and_fails(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(export_model: ExportModel, out: Path) -> None:
        tensors = cpu_state_dict(export_model.model)
        tensors["fc.weight"][0, 0] += 1e-6
        sparse_file.save(out, tensors)

    monkeypatch.setitem(export.FORMATS, "sparse", replace(sparse.FORMAT, write=wrong))  # type: ignore[arg-type]
    assert exported(run, "sparse", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "fc.weight differs" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("image", [0, 1, 300, 999])
def test_an_export_whose_logits_are_nan_for_one_image_is_refused(
    image: int, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(out: Path, export_model: ExportModel) -> Loaded:
        loaded, bad = sparse.load(out, export_model), export_model.images[image]

        def predict(images: Tensor) -> Tensor:
            logits = loaded.predict(images).clone()
            logits[(images == bad).flatten(1).all(1), 3] = float("nan")
            return logits

        return replace(loaded, predict=predict)

    monkeypatch.setitem(export.FORMATS, "sparse", replace(sparse.FORMAT, load=broken))  # type: ignore[arg-type]
    assert exported(run, "sparse", tmp_path / "out") == 1
    assert "logits differ by nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "timm",
        "sparse",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow]),
    ],
)
def test_nothing_lies_at_o_before_it_was_read_back_and_compared(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, exporter, seen = tmp_path / "out", export.FORMATS[name], list[bool]()
    torn = tmp_path / ".out.part"  # what a killed export leaves
    torn.mkdir()
    (torn / "out").write_text("half a file")

    def watched(path: Path, export_model: ExportModel) -> Loaded:
        loaded = exporter.load(path, export_model)

        def predict(images: Tensor) -> Tensor:
            seen.append(out.exists())
            return loaded.predict(images)

        return replace(loaded, predict=predict)

    monkeypatch.setitem(export.FORMATS, name, replace(exporter, load=watched))  # type: ignore[arg-type]
    assert exported(run, name, out) == 0
    assert seen
    assert not any(seen)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert read_elsewhere(name, out)


def test_an_interrupted_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path, export_model: ExportModel) -> Loaded:
        raise KeyboardInterrupt

    monkeypatch.setitem(export.FORMATS, "timm", replace(export.FORMATS["timm"], load=interrupted))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        export.export(
            open_saved_model("MODEL", run),
            ExportConfig(out=str(tmp_path / "out"), format="timm"),
            DataConfig(image_size=8),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["timm", "sparse"])
def test_what_model_kwargs_change_is_in_the_export(name: str, run: Path, tmp_path: Path) -> None:
    assert exported(run, name, tmp_path / "out", "--model.kwargs", "{global_pool: max}") == 0
    if name == "timm":
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert model.global_pool.pool_type == "max"
    else:
        with safe_open(str(tmp_path / "out"), framework="pt") as file:
            told = json.loads(file.metadata()["config"])
        before = json.loads((run / "model" / "config.json").read_text())
        assert told == before | {
            "global_pool": "max", "model_args": before["model_args"] | {"global_pool": "max"},
        }  # fmt: skip


@needs_onnx
@pytest.mark.slow
def test_the_onnx_runtime_says_nothing(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    levels, session = [], onnxruntime.InferenceSession

    def watched(path: str, options: Any, **more: Any) -> Any:
        levels.append(options.log_severity_level)
        return session(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    assert exported(run, "onnx", tmp_path / "out") == 0
    assert levels == [3]
    assert capfd.readouterr().err == ""


@needs_onnx
def test_onnx_tells_its_cause_in_a_line(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        try:
            try:
                raise NotImplementedError("No decomposition for aten::odd.\nLong advice")
            except NotImplementedError as error:
                raise ValueError("in a node") from error
        except ValueError as error:
            raise RuntimeError("Failed to convert the exported program.\nPlease report") from error

    monkeypatch.setattr(torch.onnx, "export", failing)
    assert exported(run, "onnx", tmp_path / "other") == 1
    err = capfd.readouterr().err
    assert "torch.onnx cannot convert resnet18: No decomposition for aten::odd." in err
    assert err.count("\n") == 1


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("RUN -o NEW", "--format|timm, onnx"),
        ("RUN --format onxx -o NEW", "--format|'onxx'|onnx"),
        ("RUN --format timm", "-o must be given"),
        ("RUN --format timm -o OLD", "OLD|exists already"),
        ("--format timm -o NEW", "one model|not 0"),
        ("RUN RUN --format timm -o NEW", "one model|not 2"),
        ("nothing --format timm -o NEW", "nothing is there"),
        ("OLD --format timm -o NEW", "model.safetensors"),
        ("CORRUPT --format timm -o NEW --model.name resnet18", "damaged"),
        ("PICKLE --format timm -o NEW --model.name resnet18", "plain state dict"),
        ("RUN/model/model.safetensors --format timm -o NEW", "--model.name"),
        ("RUN/model/model.safetensors --format timm -o NEW --model.name resnt18", "resnt18|resnet18"),
        ("RUN/model/model.safetensors --format timm -o NEW --model.name resnet50", "another architecture"),
        ("RUN --format timm -o NEW --data.name fashion_mnist --data.root nowhere", "--data.root|nowhere"),
        ("RUN --format timm -o NEW --epochs 3", "--epochs"),
        ("UNFINISHED --format timm -o NEW", "not finished"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    arguments: str, words: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OLD").mkdir()
    data = (run / "model" / "model.safetensors").read_bytes()
    Path("CORRUPT").write_bytes(data[: len(data) // 2])
    torch.save({"model": Path("x"), "run": print}, "PICKLE")
    Path("UNFINISHED").mkdir()
    (Path("UNFINISHED") / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert main.main(["export", *arguments.replace("RUN", str(run)).split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words.split("|")), err
    assert not Path("NEW").exists()


def test_a_missing_onnx_is_told_with_what_to_install(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert exported(run, "onnx", tmp_path / "out") == 2
    assert "pip install 'sparsekit-soups[export]'" in capsys.readouterr().err


def test_a_timm_directory_of_somebody_else_is_compared_on_random_images_and_says_so(
    half_vit: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert exported(half_vit, "timm", tmp_path / "out") == 0
    assert "random images" in capsys.readouterr().out
    assert card_of(tmp_path / "out") == card_of(half_vit)
