"""`sparsekit evaluate`: whole commands on real runs, files in CIFAR-10-C's layout, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cards import CLASSES, copied, quartered, reordered
from image_files import pickled, publish, write_cifar
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from tiny import KWARGS, rows, tiny_config

from sparsekit.cli import main
from sparsekit.config.options import DataConfig, EvaluationConfig
from sparsekit.data import ImageData
from sparsekit.evaluation.corruptions import KINDS, Corruption
from sparsekit.launch import fit
from sparsekit.methods.oneshot import OneShot

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run: Path) -> Path:
    return tiny_run


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run the command; the JSON that it wrote, and what it printed."""

    def go(path: Path, *options: str) -> tuple[dict[str, Any], str]:
        file = tmp_path / "found.json"
        code = main.main(["evaluate", str(path), "--device", "cpu", "-o", str(file), *options])
        told = capsys.readouterr()
        assert (code, told.err) == (0, "")
        return json.loads(file.read_text()), told.out

    return go


def predictions(model_dir: Path, corruption: Corruption | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What timm's model predicts on digits, batch by batch, and the labels."""
    model = timm.create_model(f"local-dir:{model_dir}", pretrained=True).eval()
    data = ImageData.load(DataConfig(image_size=8), CPU, channels_last=False)
    found, truth = [], []
    for images, labels in data.raw_batches("test"):
        x = images.float() / 255
        x = corruption(x) if corruption else x
        with torch.no_grad():
            found.append(model((x - data.mean[0]) / data.std[0]).argmax(1).numpy())
        truth.append(labels.numpy())
    return np.concatenate(found), np.concatenate(truth)


# --- the numbers ------------------------------------------------------------------------------------------


def test_a_run_evaluates_to_what_its_summary_says(run: Path, evaluate: Callable[..., Any]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found, out = evaluate(run)
    test = found["variants"]["saved"]["test"]
    assert {key.removeprefix("test.") for key in summary if key.startswith("test.")} == set(test)
    for key, value in test.items():
        assert summary[f"test.{key}"] == pytest.approx(value, abs=1e-6)
    assert f"{100 * summary['test.accuracy']:.2f} %" in out
    assert f"{summary['test.ece']:.4f}" in out
    assert found["data"] == {"name": "digits", "images": 1000, "classes": 10, "image_size": 8}


def test_a_model_directory_needs_no_run(run: Path, evaluate: Callable[..., Any]) -> None:
    assert evaluate(run / "model")[0]["variants"] == evaluate(run)[0]["variants"]


def test_accuracies_are_those_of_timms_model(run: Path, evaluate: Callable[..., Any]) -> None:
    variant = evaluate(run, "--corruptions", "true", "--seed", "3")[0]["variants"]["saved"]
    predicted, labels = predictions(run / "model")
    assert variant["test"]["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=0.002)
    assert set(variant["corruptions"]) == set(KINDS)
    assert all(len(cells) == 5 for cells in variant["corruptions"].values())
    for kind, severity in (("gaussian_noise", 1), ("contrast", 4), ("rotate", 5)):
        predicted, labels = predictions(run / "model", Corruption(kind, severity, 3, CPU))
        cell = variant["corruptions"][kind][severity - 1]
        assert cell["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=0.002)


def test_images_and_classes_are_as_the_models_own_card_says(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any]
) -> None:
    expected = evaluate(run)[0]["variants"]["saved"]
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    other = quartered(reordered(run / "model", tmp_path / "o", order), tmp_path / "q")
    found, out = evaluate(other, "--data.name", "digits", "--dense", str(run), "--batchnorm", "both")
    assert "by name" in out
    assert found["class_names"] == [CLASSES[label] for label in order]
    saved = found["variants"]["saved"]
    assert saved["class_accuracy"] == [expected["class_accuracy"][label] for label in order]
    assert saved["test"]["accuracy"] == expected["test"]["accuracy"]
    assert saved["test"]["loss"] == pytest.approx(expected["test"]["loss"])
    assert saved["agreement"] == 1.0
    again = evaluate(run, "--batchnorm", "recalibrated")[0]["variants"]["recalibrated"]["test"]["accuracy"]
    assert found["variants"]["recalibrated"]["test"]["accuracy"] == pytest.approx(again, abs=0.002)
    assert evaluate(run, "--dense", str(other))[0]["variants"]["saved"]["agreement"] == 1.0


def test_published_corruptions_are_labelled_in_the_models_order(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any]
) -> None:
    published(tmp_path / "files")
    other = reordered(run / "model", tmp_path / "o", [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    files = ["--corruption_files", str(tmp_path / "files")]
    one, two = (evaluate(path, *files, "--data.name", "digits")[0]["variants"]["saved"] for path in (run, other))
    for kind, cells in one["corruption_files"].items():
        accuracies = [[cell["accuracy"] for cell in row] for row in (cells, two["corruption_files"][kind])]
        assert accuracies[0] == accuracies[1]


def test_images_that_are_not_square_are_measured_and_not_corrupted(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(run / "model", tmp_path / "m", input_size=[1, 8, 12])
    found, _ = evaluate(other, "--data.name", "digits")
    assert found["data"]["image_size"] == [8, 12]
    assert main.main(["evaluate", str(other), "--data.name", "digits", "--corruptions", "true"]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("--corruptions", "8×12", "square"))


def test_a_larger_test_that_a_card_recommends_is_told_and_not_made(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any]
) -> None:
    expected, out = evaluate(run)
    assert "recommends" not in out
    other = copied(run / "model", tmp_path / "m", test_input_size=[1, 12, 12], test_crop_pct=1.0)
    found, out = evaluate(other, "--data.name", "digits")
    assert found["variants"] == expected["variants"]
    assert all(word in out for word in ("recommends", "--data.image_size 12", "crop_pct: 1.0"))


def test_other_classes_are_refused_by_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copied(run / "model", tmp_path / "m", names=[*CLASSES[:-1], "zorilla"])
    for arguments in ([str(other), "--data.name", "digits"], [str(run), "--dense", str(other)]):
        assert main.main(["evaluate", *arguments, "-o", str(tmp_path / "found.json")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert all(word in err for word in (str(other), "'zorilla'", "'9'", "digits", "label_names"))


@pytest.mark.slow
def test_the_same_seed_corrupts_the_same(run: Path, evaluate: Callable[..., Any]) -> None:
    first = evaluate(run, "--corruptions", "true")[0]
    assert evaluate(run, "--corruptions", "true")[0] == first
    other = evaluate(run, "--corruptions", "true", "--seed", "1")[0]
    assert other["variants"]["saved"]["corruptions"] != first["variants"]["saved"]["corruptions"]
    assert other["variants"]["saved"]["test"] == first["variants"]["saved"]["test"]


def test_batchnorm_is_measured_again_beside_what_was_saved(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any]
) -> None:
    from safetensors.torch import load_file, save_file

    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / "config.json").write_bytes((run / "model" / "config.json").read_bytes())
    tensors = load_file(run / "model" / "model.safetensors")
    wrong = {name: t * 9 if name.endswith("running_var") else t for name, t in tensors.items()}
    save_file(wrong, spoilt / "model.safetensors", metadata={"format": "pt"})
    found, out = evaluate(spoilt, "--batchnorm", "both")
    saved, again = (found["variants"][key]["test"]["accuracy"] for key in ("saved", "recalibrated"))
    true = evaluate(run)[0]["variants"]["saved"]["test"]["accuracy"]
    assert again == pytest.approx(true, abs=0.005)  # the soup was recalibrated on the same images
    assert saved < again - 0.05
    assert "as saved" in out
    assert "BatchNorm recalibrated" in out
    assert set(evaluate(spoilt, "--batchnorm", "recalibrated")[0]["variants"]) == {"recalibrated"}


def test_agreement_is_the_share_of_equal_predictions(run: Path, tmp_path: Path, evaluate: Callable[..., Any]) -> None:
    fit(tiny_config(OneShot(), out=tmp_path / "dense", sparsity=0.0, seed=5, epochs=2))
    found, out = evaluate(run, "--dense", str(tmp_path / "dense"))
    ours, theirs = predictions(run / "model")[0], predictions(tmp_path / "dense" / "model")[0]
    agreement = found["variants"]["saved"]["agreement"]
    assert agreement == pytest.approx(float((ours == theirs).mean()), abs=0.002)
    assert agreement < 1.0
    assert "agrees with dense" in out
    assert evaluate(run, "--dense", str(run))[0]["variants"]["saved"]["agreement"] == 1.0


@pytest.mark.slow
def test_fit_runs_the_suite_where_asked(tmp_path: Path, evaluate: Callable[..., Any]) -> None:
    wanted = EvaluationConfig(corruptions=True, report=False)
    summary = fit(tiny_config(out=tmp_path / "run", evaluation=wanted))
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["variants"]["saved"]["corruptions"]
    cells = [cell["accuracy"] for row in kept.values() for cell in row]
    assert summary["test.corrupted_accuracy"] == pytest.approx(float(np.mean(cells)))
    again = evaluate(tmp_path / "run", "--corruptions", "true")[0]["variants"]["saved"]["corruptions"]
    assert [cell["accuracy"] for row in again.values() for cell in row] == pytest.approx(cells, abs=0.002)
    assert rows(tmp_path / "run", "done")[0]["test.corrupted_accuracy"] == summary["test.corrupted_accuracy"]


# --- where the result goes -----------------------------------------------------------------------------------


def test_only_a_run_gets_a_file_without_being_asked(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((run / name).read_bytes())
    assert main.main(["evaluate", str(copy / "model")]) == 0
    assert {path.name for path in (copy / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert main.main(["evaluate", str(copy)]) == 0
    assert set(json.loads((copy / "evaluation.json").read_text())["variants"]) == {"saved"}


# --- CIFAR-10-C ------------------------------------------------------------------------------------------------


def published(folder: Path, count: int = 40, size: int = 8, channels: int = 1, five: bool = True) -> np.ndarray:
    """Two kinds of corruption in the published layout: severity after severity of the same labels."""
    folder.mkdir()
    labels = np.arange(count) % 10
    random = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(labels, 5) if five else labels)
    for kind in ("fog", "snow"):
        images = random.integers(0, 256, (5 * count, size, size, channels), dtype=np.uint8)
        np.save(folder / f"{kind}.npy", images)
    return labels


@pytest.mark.parametrize("five", [True, False], ids=["labels five times", "labels once"])
def test_published_files_are_read_severity_by_severity(
    run: Path, tmp_path: Path, evaluate: Callable[..., Any], five: bool
) -> None:
    labels = published(tmp_path / "files", five=five)
    found, out = evaluate(run, "--corruption_files", str(tmp_path / "files"))
    cells = found["variants"]["saved"]["corruption_files"]
    assert list(cells) == ["fog", "snow"]
    assert "snow" in out
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    card = json.loads((run / "model" / "config.json").read_text())["pretrained_cfg"]
    for kind, row in cells.items():
        images = np.load(tmp_path / "files" / f"{kind}.npy").reshape(5, 40, 8, 8).astype(np.float32) / 255
        for severity, cell in enumerate(row):
            x = torch.tensor((images[severity] - card["mean"][0]) / card["std"][0])[:, None]
            with torch.no_grad():
                predicted = model(x).argmax(1).numpy()
            assert cell["accuracy"] == pytest.approx(float((predicted == labels).mean()), abs=1e-6)


def spoil(folder: Path, how: str) -> None:
    if how == "no labels":
        (folder / "labels.npy").unlink()
    elif how == "nothing else":
        (folder / "fog.npy").unlink()
        (folder / "snow.npy").unlink()
    elif how == "cut off":
        (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-100])
    elif how == "objects":
        np.save(folder / "fog.npy", np.array([{"a": 1}] * 5, dtype=object), allow_pickle=True)
    elif how == "empty":
        (folder / "fog.npy").write_bytes(b"")
    elif how == "archive":
        with (folder / "fog.npy").open("wb") as file:
            np.savez(file, fog=np.zeros((200, 8, 8, 1), np.uint8))
    elif how == "torn archive":
        (folder / "fog.npy").write_bytes(b"PK\x03\x04" + bytes(100))
    elif how == "other lengths":
        np.save(folder / "fog.npy", np.zeros((45, 8, 8, 1), np.uint8))
    elif how == "floats":
        np.save(folder / "fog.npy", np.zeros((200, 8, 8, 1), np.float32))
    elif how == "other classes":
        np.save(folder / "labels.npy", np.arange(200) % 100)
    elif how == "shuffled":
        np.save(folder / "labels.npy", np.random.default_rng(0).integers(0, 10, 200))
    elif how == "colours":
        np.save(folder / "fog.npy", np.zeros((200, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no labels", "no labels.npy"),
        ("nothing else", "no KIND.npy"),
        ("cut off", "fog.npy"),
        ("objects", "fog.npy cannot be read"),
        ("empty", "fog.npy cannot be read"),
        ("archive", "fog.npy cannot be read: it is an archive"),
        ("torn archive", "fog.npy cannot be read"),
        ("unknown home", "no labels.npy there"),
        ("other lengths", "five severities"),
        ("floats", "no square uint8 images"),
        ("other classes", "to 99, but the model has 10 classes"),
        ("shuffled", "differs from one severity to the next"),
        ("colours", "3 channels"),
    ],
)
def test_published_files_that_do_not_fit_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    published(tmp_path / "files")
    spoil(tmp_path / "files", how)
    given = "~nosuchuser/files" if how == "unknown home" else str(tmp_path / "files")
    assert main.main(["evaluate", str(run), "--corruption_files", given]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "--corruption_files" in err
    assert err.count("\n") == 1


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "MODEL"),
        ("nowhere", "nothing is there"),
        ("{empty}", "model.safetensors"),
        ("{unfinished}", "not finished"),
        ("{damaged}", "names no timm architecture"),
        ("{run} --corruption true", "--corruptions"),
        ("{run} --batchnorm again", "--batchnorm"),
        ("{run} --device tpu", "--device is tpu"),
        ("{run} --dense nowhere", "--dense nowhere"),
        ("{run} --data.name fashion_mnist --data.root {empty}", "--data.root"),
        ("{run} -o {run}/summary.json/below", "--out"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    places = {name: tmp_path / name for name in ("empty", "unfinished", "damaged")}
    for path in places.values():
        path.mkdir()
    (places["unfinished"] / "config.yaml").write_text("seed: 0\n")
    for name in ("config.json", "model.safetensors"):
        (places["damaged"] / name).write_text("{}")
    filled = [part.format(run=run, **places) for part in arguments.split()]
    assert main.main(["evaluate", *filled]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.count("\n") == 1


def test_another_data_set_is_refused_by_its_classes_or_channels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cifar-10-batches-py"
    write_cifar(root, 10, 60, pickled(2))
    publish(monkeypatch, root, 10)
    assert main.main(["evaluate", str(run), "--data.name", "cifar10", "--data.root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in (str(run), "in_chans 1", "the data 3", "--data.name"))


def test_a_file_of_weights_is_measured_as_the_run_it_came_from(
    run: Path, tmp_path: Path, evaluate: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    """Safetensors and a state dict alike, where `--model` says which architecture they are."""
    whole, _ = evaluate(run)
    tensors = load_file(run / "model" / "model.safetensors")
    torch.save(tensors, tmp_path / "weights.pt")
    model = ["--model.name", "resnet18", "--model.kwargs", json.dumps({**KWARGS, "in_chans": 1, "num_classes": 10})]
    for file in (run / "model" / "model.safetensors", tmp_path / "weights.pt"):
        found, _ = evaluate(file, *model, "--data.image_size", "8")
        assert found["variants"] == whole["variants"]


def test_a_sparse_file_is_measured_by_the_card_that_it_holds(
    run: Path, tmp_path: Path, evaluate: Callable[..., tuple[dict[str, Any], str]]
) -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    other = quartered(reordered(run / "model", tmp_path / "o", order), tmp_path / "q")
    expected, _ = evaluate(other, "--data.name", "digits")
    assert main.main(["export", str(other), "--format", "sparse", "-o", str(tmp_path / "small.safetensors")]) == 0
    found, _ = evaluate(tmp_path / "small.safetensors", "--data.name", "digits")
    assert {**found, "model": None} == {**expected, "model": None}
    bare = tmp_path / "bare.safetensors"  # without a card of its own it gets the one that a timm directory would get
    bare.write_bytes((run / "model" / "model.safetensors").read_bytes())
    model = ["--model.name", "resnet18", "--model.kwargs", json.dumps({**KWARGS, "in_chans": 1, "num_classes": 10})]
    data = ["--data.name", "digits", "--data.image_size", "8"]
    out = tmp_path / "again.safetensors"
    assert main.main(["export", str(bare), "--format", "sparse", "-o", str(out), *model, *data]) == 0
    assert evaluate(out, "--data.name", "digits")[0]["variants"] == evaluate(run)[0]["variants"]
