"""A teacher is shown the student's batches as its own config.json says, and names its classes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from cards import card_of, copied, quartered, reordered
from tiny import tiny_setup

from sparsekit.config.options import DistillConfig
from sparsekit.data import load
from sparsekit.data.images import ImageData
from sparsekit.errors import UserError
from sparsekit.evaluation.scores import score_model
from sparsekit.models.teacher import open_teacher

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


@pytest.fixture
def data() -> ImageData:
    loaded = tiny_setup().data
    assert isinstance(loaded, ImageData)
    return loaded


def timm_model(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model


def teacher(path: Path) -> torch.nn.Module:
    setup = tiny_setup(distill=DistillConfig(str(path)))
    assert setup.teacher is not None
    return setup.teacher


def test_a_teacher_of_the_datas_own_normalisation_gets_the_batch_itself(tiny_run: Path, data: ImageData) -> None:
    images, _ = next(iter(data.train_batches(0, 1)))
    plain = timm_model(tiny_run / "model")
    assert torch.equal(teacher(tiny_run)(images), plain(images))


def test_a_teacher_knows_what_it_is_shown(tiny_run: Path, tmp_path: Path, data: ImageData) -> None:
    other = teacher(quartered(tiny_run / "model", tmp_path / "q"))
    images, _ = next(iter(data.train_batches(0, 1)))
    torch.testing.assert_close(other(images), teacher(tiny_run)(images), rtol=1e-3, atol=1e-3)
    autocast = torch.autocast("cpu", enabled=False)
    here, there = (score_model(t, data.evaluation_batches("test"), autocast) for t in (teacher(tiny_run), other))
    assert there.accuracy == pytest.approx(here.accuracy, abs=0.001)


def test_the_mean_and_the_size_of_a_batch_are_changed_by_the_formula(
    tiny_run: Path, tmp_path: Path, data: ImageData
) -> None:
    changes = {"mean": [0.3], "std": [0.6], "input_size": [1, 12, 20], "interpolation": "bicubic"}
    path = copied(tiny_run / "model", tmp_path / "m", **changes)
    found, notes = open_teacher(str(path), data)
    images, _ = next(iter(data.train_batches(0, 1)))
    raw = images.double() * data.std[0] + data.mean[0]
    own = F.interpolate((raw - 0.3) / 0.6, (12, 20), mode="bicubic", antialias=True).float()
    torch.testing.assert_close(found(images), timm_model(path)(own), rtol=1e-3, atol=1e-4)
    assert all(word in notes[0] for word in ("--distill", "12×20 pixels", "mean 0.3", "std 0.6"))


def test_a_teachers_classes_are_put_in_the_datas_order(tiny_run: Path, tmp_path: Path, data: ImageData) -> None:
    found, notes = open_teacher(str(reordered(tiny_run / "model", tmp_path / "m", ORDER)), data)
    images, _ = next(iter(data.train_batches(0, 1)))
    torch.testing.assert_close(found(images), teacher(tiny_run)(images))
    assert any("by name" in note for note in notes)


def test_a_teacher_that_cannot_take_its_images_is_one_line(tmp_path: Path) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 1, "in_chans": 1}
    timm.models.save_for_hf(
        timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs),
        tmp_path / "m",
        model_args=kwargs,
        safe_serialization=True,
    )
    right = copied(tmp_path / "m", tmp_path / "right", input_size=[1, 224, 224])  # as older timm wrote it
    assert teacher(right).size == (32, 32)
    wrong = copied(tmp_path / "m", tmp_path / "wrong", input_size=[1, 224, 224], fixed_input_size=False)
    with pytest.raises(UserError) as caught:
        teacher(wrong)
    message = str(caught.value)
    assert all(word in message for word in ("--distill", str(wrong), "224", "input_size")), message
    assert "\n" not in message


def test_a_student_of_another_order_has_a_teacher_of_that_order(tiny_run: Path, tmp_path: Path) -> None:
    base = load(tiny_setup().config.data, torch.device("cpu"), False)
    seen = base.seen_by(base.inputs, [ORDER.index(label) for label in range(10)])
    found, _ = open_teacher(str(tiny_run), seen)
    autocast = torch.autocast("cpu", enabled=False)
    score = score_model(found, seen.evaluation_batches("test"), autocast)
    plain = score_model(timm_model(tiny_run / "model"), base.evaluation_batches("test"), autocast)
    assert (score.accuracy, pytest.approx(score.loss)) == (plain.accuracy, plain.loss)
    assert card_of(tiny_run / "model")["label_names"] != list(seen.class_names)
