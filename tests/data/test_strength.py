"""How strong augmentation is: what timm's loader gets for it, and what reaches a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch.utils.data import TensorDataset

import sparsekit
from sparsekit.config.options import DataConfig, ReplicasConfig
from sparsekit.data import load
from sparsekit.data.strength import scaled
from sparsekit.errors import UserError
from sparsekit.training.prepare import prepare

CPU = torch.device("cpu")
GIVEN: dict[str, Any] = {
    "scale": [0.5, 0.9], "ratio": [0.5, 2.0], "hflip": 0.4, "vflip": 0.2, "color_jitter": [0.2, 0.4, 0.6, 0.3],
    "re_prob": 0.4, "grayscale_prob": 0.1, "gaussian_blur_prob": 0.3, "color_jitter_prob": 0.8, "mean": (0.5,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.5, {
            "scale": (0.75, 0.95), "ratio": (0.5**0.5, 2**0.5), "hflip": 0.2, "vflip": 0.1, "re_prob": 0.2,
            "color_jitter": [0.1, 0.2, 0.3, 0.15], "grayscale_prob": 0.05, "gaussian_blur_prob": 0.15,
            "color_jitter_prob": 0.4,
        }),
        (2.0, {
            "scale": (0.5 / 1.5, 0.9), "ratio": (0.25, 4.0), "hflip": 0.4, "vflip": 0.2, "re_prob": 0.8,
            "color_jitter": [0.4, 0.8, 1.2, 0.5], "grayscale_prob": 0.2, "gaussian_blur_prob": 0.6,
            "color_jitter_prob": 1.0,
        }),
    ],
)  # fmt: skip
def test_every_argument_follows_the_strength(strength: float, expected: dict[str, Any]) -> None:
    found = scaled(GIVEN, strength)
    assert found.pop("mean") == (0.5,)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert scaled(GIVEN, 1.0) == GIVEN
    assert scaled({"scale": [1, 1]}, 4.0)["scale"] == (1.0, 1)


def test_what_is_not_given_is_timms() -> None:
    assert scaled({}, 0.5) == {
        "scale": pytest.approx((0.54, 1.0)), "ratio": pytest.approx((0.75**0.5, (4 / 3) ** 0.5)), "hflip": 0.25,
        "vflip": 0.0, "color_jitter": 0.2,
    }  # fmt: skip
    kept = scaled({"train_crop_mode": "rkrc"}, 2.0)
    assert (kept["scale"], kept["ratio"]) == (pytest.approx((0.8 / 1.2, 1.0)), pytest.approx((0.81, 0.9**-2)))


@pytest.mark.parametrize(
    ("policy", "strength", "expected"),
    [
        ("rand-m9-mstd0.5-inc1", 0.5, "rand-m4-mstd0.5-inc1"),  # 4.5, rounded to the even number
        ("rand-mstd0.5-m8", 2.0, "rand-m16-mstd0.5"),
        ("rand-n3", 0.5, "rand-m5-n3"),
        ("augmix", 2.0, "augmix-m6"),
        ("augmix-m3-mmax9-w2", 3.0, "augmix-m9-mmax9-w2"),
    ],
)
def test_the_magnitude_of_a_policy_follows_too(policy: str, strength: float, expected: str) -> None:
    assert scaled({"auto_augment": policy}, strength)["auto_augment"] == expected


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for part, count in (("train", 20), ("val", 4)):
        for number, name in enumerate("ab"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(100 * number + i).integers(0, 256, (24, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def folder(root: Path, **changes: Any) -> DataConfig:
    return DataConfig("imagefolder", str(root), batch_size=8, image_size=16, held_out=0.2, workers=0, **changes)


def first(config: DataConfig, strength: float = 1.0) -> torch.Tensor:
    return next(iter(load(config, CPU, True).at_strength(strength).train_batches(3, 1)))[0]


def test_an_image_folder_is_augmented_at_its_strength(root: Path) -> None:
    usual, none = first(folder(root)), first(folder(root, augment=False))
    assert torch.equal(first(folder(root), 0.0), none)
    assert torch.equal(first(folder(root, augment_strength=2.0), 2.0), first(folder(root), 2.0))
    assert torch.equal(first(folder(root, augment_strength=2.0), 1.0), usual)  # the same bits as without a strength
    # a little of it changes little
    apart = [float((first(folder(root), strength) - none).abs().mean()) for strength in (0.02, 1.0)]
    assert 0.0 < apart[0] < 0.5 * apart[1]
    jitter = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "color_jitter": 0.4}
    other = {**jitter, "color_jitter": 0.8}
    assert torch.equal(first(folder(root, kwargs=jitter), 2.0), first(folder(root, kwargs=other)))


def test_a_policy_without_a_magnitude_has_no_other_strength(root: Path) -> None:
    config = folder(root, kwargs={"auto_augment": "original"})
    first(config)
    first(config, 0.0)
    for data, strength in ((config, 0.5), (folder(root, kwargs=config.kwargs, augment_strength=0.5), 0.5)):
        with pytest.raises(UserError) as caught:
            first(data, strength)
        assert all(part in str(caught.value) for part in ("--data.kwargs", "'original'", "0.5", "rand-m9"))


def test_examples_of_ones_own_have_no_strength() -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    own = sparsekit.Data(train=TensorDataset(x, y), test=TensorDataset(x, y))
    common: dict[str, Any] = {"data": own, "model": torch.nn.Linear(4, 3), "epochs": 12, "device": "cpu"}
    with pytest.raises(UserError, match=r"replicas.vary augment: examples of your own .* vary another"):
        sparsekit.fit(**common, replicas={"vary": "augment"})
    for strength in (0, 2):
        with pytest.raises(UserError, match=rf"data.augment_strength {strength}.* is not for examples of your own"):
            sparsekit.fit(**common, **{"data.augment_strength": strength})


def test_what_replicas_vary_is_tried_before_a_run_begins(root: Path) -> None:
    """The largest strength is prepared, too, so that memory that lacks is told early."""
    setup = prepare(tiny_config(replicas=ReplicasConfig(2, vary="augment", values=[0.5, 3.0], start=0.0)))
    assert [replica.augment for replica in setup.plan[-1].replicas] == [0.5, 3.0]
    config = folder(root, kwargs={"auto_augment": "original"})
    replicas = ReplicasConfig(2, vary="augment", values=[0.5, 1.0], start=0.0)
    with pytest.raises(UserError, match="'original' has no magnitude"):
        prepare(tiny_config(replicas=replicas, data=config, epochs=10))
