"""A run goes on with the images that it was started with, or not at all."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resuming import contents, strike

from sparsekit.cli.main import main
from sparsekit.config.options import DataConfig
from sparsekit.data import load
from sparsekit.data.files import RawData
from sparsekit.errors import UserError
from sparsekit.run import images

QUIET = ["--wandb.mode", "disabled", "--evaluation.report", "false", "--evaluation.diagnostics", "false"]


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 images without splits, of which all are cut."""
    root = tmp_path_factory.mktemp("images") / "pool"
    for label, name in enumerate("ab"):
        for number in range(20):
            paint(root / name / f"{number}.png", 100 * label + number)
    return root


def fit(root: Path, out: Path, *options: str) -> int:
    data = ["--data.name", "imagefolder", "--data.root", str(root), "--data.image_size", "32", "--data.held_out", "0.2"]
    run = ["--epochs", "6", "--replicas.count", "1", "--method", "oneshot", "--merge", "none", "--device", "cpu"]
    model = ["--model.name", "test_resnet", "--optimizer.lr", "0.01", "--data.batch_size", "6", "--data.workers", "0"]
    return main(["fit", *data, *run, *model, *QUIET, "--out", str(out), *options])


@pytest.fixture(scope="module")
def stopped(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run on the pool that a signal stopped."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        strike(patch, 6)
        assert fit(pool, out) == 143
    return out


def test_the_list_holds_every_image_with_its_split_and_label(pool: Path, stopped: Path) -> None:
    found = json.loads(gzip.decompress((stopped / images.NAME).read_bytes()))
    everything = {name: label for part in found["images"].values() for name, label in part.items()}
    assert everything == {f"{c}/{number}.png": label for label, c in enumerate("ab") for number in range(20)}
    assert {split: len(part) for split, part in found["images"].items()} == {"train": 26, "held_out": 8, "test": 6}
    assert found["bytes"] == {name: (pool / name).stat().st_size for name in everything}
    plan = json.loads((stopped / "plan.json").read_text())
    assert plan["data"]["train"] == {"images": 26, "classes": 2, "source": "from pool/"}


def gone(root: Path) -> None:
    (root / "a" / "7.png").unlink()


def new(root: Path) -> None:
    paint(root / "b" / "new.png", 1)


def renamed(root: Path) -> None:
    (root / "a" / "7.png").rename(root / "a" / "x.png")


def relabelled(root: Path) -> None:
    (root / "a" / "7.png").rename(root / "b" / "x.png")


def another(root: Path) -> None:
    Image.new("RGB", (32, 32)).save(root / "a" / "7.png")


def class_renamed(root: Path) -> None:
    (root / "a").rename(root / "c")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (gone, ["1 image went: a/7.png"]),
        (new, ["1 image appeared: b/new.png"]),
        (renamed, ["1 image went: a/7.png", "1 image appeared: a/x.png"]),
        (relabelled, ["1 image went: a/7.png", "1 image appeared: b/x.png"]),
        (another, ["1 image changed: a/7.png"]),
        (class_renamed, ["20 images went: a/0.png", "20 images appeared: c/0.png"]),
    ],
)
def test_a_run_does_not_go_on_with_other_images(
    change: Callable[[Path], None],
    named: list[str],
    pool: Path,
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(pool, tmp_path / "pool"))
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    change(root)
    assert fit(root, out, "--resume") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "--resume" in message
    assert "another --out" in message
    assert all(part in message for part in named)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_goes_on_with_the_same_images_elsewhere_to_the_same_bits(
    pool: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(pool, tmp_path / "whole") == 0
    root = Path(shutil.copytree(pool, tmp_path / "moved" / "here"))
    (root / "a" / "notes.txt").touch()  # passed over, now as before
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert fit(root, out, "--resume") == 0
    assert "train: 26 images of 2 classes, from here/" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "whole")
    assert fit(tmp_path / "nowhere", out, "--resume") == 0  # done: its images are of no more use


def test_without_the_list_another_root_is_refused_and_the_same_one_warned_of(
    pool: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    (out / images.NAME).unlink()
    assert fit(tmp_path, out, "--resume") == 2
    assert "--data.root was" in capsys.readouterr().err
    data = load(DataConfig("imagefolder", str(pool), batch_size=4), torch.device("cpu"), True)
    assert images.NAME in images.check(out, data.contents)
    (out / images.NAME).write_bytes((stopped / images.NAME).read_bytes()[:-9])
    assert images.NAME in images.check(out, data.contents)


def test_a_run_that_has_no_checkpoint_begins_again_with_what_is_there(
    pool: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(pool, tmp_path / "pool"))
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    gone(root)
    strike(monkeypatch, 1)
    assert fit(root, out, "--resume") == 143
    assert "a/7.png" not in gzip.decompress((out / images.NAME).read_bytes()).decode()


def test_large_sets_are_asked_for_the_sizes_of_some_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(50):
            (tmp_path / name / f"{number}.png").touch()
    monkeypatch.setattr("sparsekit.data.folder._SIZES", 10)
    found = load(DataConfig("imagefolder", str(tmp_path), batch_size=4), torch.device("cpu"), True).contents.record()
    for split, part in found["images"].items():
        assert 5 <= sum(name in found["bytes"] for name in part) <= 10, split


def test_the_published_data_sets_are_told_by_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load(DataConfig(), torch.device("cpu"), True)
    images.write(tmp_path, digits.contents)
    assert images.check(tmp_path, digits.contents) == ""
    record, other = digits.contents.record(), RawData.record

    def changed(raw: RawData) -> dict[str, object]:
        raw.train_labels[3] += 1
        return other(raw)

    monkeypatch.setattr(RawData, "record", changed)
    damaged = load(DataConfig(), torch.device("cpu"), True)
    assert damaged.contents.record() != record
    with pytest.raises(UserError, match="1 file changed: train labels"):
        images.check(tmp_path, damaged.contents)
    assert images.digest(digits.contents) != images.digest(damaged.contents)
