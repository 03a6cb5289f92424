"""`--data.limit`, `--data.fold`, `--data.mean` and `--data.std` of the built-in data sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_idx
from PIL import Image

from sparsekit.config.options import DataConfig
from sparsekit.data import FolderData, ImageData, contents_at_hand, load
from sparsekit.errors import UserError

CPU = torch.device("cpu")
CHANGES: list[dict[str, Any]] = [
    {},
    {"fold": "1/3"},
    {"fold": "3/3", "limit": 30},
    {"limit": 0.5},
    {"limit": 24},
    {"fold": "2/2", "limit": 0.5},
]


def folder(root: Path, parts: list[str], each: int = 30) -> str:
    for part in parts:
        for number, name in enumerate("abc"):
            for i in range(each):
                path = root / part / name / f"{part or 'x'}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (80 * number, i, 0)).save(path)
    return str(root)


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("parts", [[""], ["train"], ["train", "val"], ["train", "val", "test"]], ids="+".join)
def test_a_folder_has_the_sizes_that_its_plan_says(tmp_path: Path, parts: list[str], change: dict[str, Any]) -> None:
    config = DataConfig("imagefolder", folder(tmp_path, parts), batch_size=4, image_size=8, workers=0)
    config = replace(config, held_out=0.1, **change)
    data, said = load(config, CPU, False), contents_at_hand(config)
    assert isinstance(data, FolderData)
    assert said is not None
    assert said.lines() == data.contents.lines()
    sizes = (data.train_size, data.held_out_size, data.test_size)
    assert sizes == (said.train.images, said.held_out.images, said.test.images)
    places = [place for split in ("train", "held_out", "test") for place, _ in data._samples[split]]
    assert len(set(places)) == len(places) <= 90 * len(parts)
    for split in ("train", "held_out"):
        shares = Counter(label for _, label in data._samples[split])
        assert len(shares) == 3
        assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_digits_have_the_sizes_that_their_plan_says(change: dict[str, Any]) -> None:
    config = DataConfig(image_size=8, batch_size=4, **change)
    data, said = load(config, CPU, False), contents_at_hand(config)
    assert isinstance(data, ImageData)
    assert said is not None
    assert said.lines() == data.contents.lines()
    assert (data.train_size, data.held_out_size) == (said.train.images, said.held_out.images)
    whole = sum(said.images for said in (said.train, said.held_out))
    assert whole == 797 if "limit" not in change else whole < 797
    shares = Counter(data._cpu_labels["train"].tolist())
    assert len(shares) == 10
    assert max(shares.values()) - min(shares.values()) <= max(2, 0.2 * data.train_size / 10)


def test_every_digit_is_held_out_once() -> None:
    held_out = [
        images.flatten(1)
        for k in (1, 2, 3)
        for images, _ in load(DataConfig(image_size=8, fold=f"{k}/3"), CPU, False).raw_batches("held_out")
    ]
    whole = load(DataConfig(image_size=8), CPU, False)
    parts = [images.flatten(1) for split in ("train", "held_out") for images, _ in whole.raw_batches(split)]  # type: ignore[arg-type]

    def counted(batches: list[torch.Tensor]) -> Counter[tuple[int, ...]]:
        return Counter(tuple(map(int, image)) for image in torch.cat(batches).tolist())

    assert counted(held_out) == counted(parts)


def test_mean_and_std_are_what_is_subtracted_and_divided_by(tmp_path: Path) -> None:
    write_idx(tmp_path, train=40, side=8)
    for name, root, channels in (
        ("digits", None, 1),
        ("mnist", str(tmp_path), 1),
        ("imagefolder", folder(tmp_path / "f", ["train"]), 3),
    ):
        config = DataConfig(name, root, batch_size=4, image_size=8, workers=0, held_out=0.25)
        given = load(replace(config, mean=0.25, std=[0.5]), CPU, False)
        raw = next(iter(load(config, CPU, False).raw_batches("test")))[0].float()
        shown = next(iter(given.evaluation_batches("test")))[0]
        torch.testing.assert_close(shown, (raw / 255 - 0.25) / 0.5, atol=1e-5, rtol=1e-5)
        assert (given.inputs.mean, given.inputs.std) == ((0.25,) * channels, (0.5,) * channels)
        with pytest.raises(UserError, match=rf"--data\.mean has 2 values for {channels} channels; give one for each"):
            load(replace(config, mean=[0.1, 0.2]), CPU, False)


def test_statistics_are_measured_on_the_images_that_are_left() -> None:
    data = load(DataConfig(image_size=8, limit=20, batch_size=5), CPU, False)
    assert isinstance(data, ImageData)
    raw = torch.cat([images for images, _ in data.raw_batches("train")]).float() / 255
    assert len(raw) == 20
    assert data.inputs.mean == pytest.approx([float(raw.mean())])
    assert data.inputs.std == pytest.approx([float(raw.std(correction=0))])
