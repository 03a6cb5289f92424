"""Corruptions: what each is, that a whole batch is treated as each image alone, and that seeds decide."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from sparsekit.evaluation.corruptions import KINDS, SEVERITIES, Corruption

CPU = torch.device("cpu")
NOISE = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"}
RANDOM = NOISE | {"motion_blur", "fog", "elastic", "rotate", "occlusion"}


def images(count: int = 12, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth pictures with some detail."""
    coarse = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0.0, 1.0)


def corrupted(x: Tensor, kind: str, severity: int = 3, seed: int = 0) -> Tensor:
    return Corruption(kind, severity, seed, CPU)(x)


@pytest.mark.parametrize(("channels", "size"), [(1, 4), (1, 16), (3, 32), (5, 9), (2, 50)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_channels_and_size(kind: str, channels: int, size: int) -> None:
    x = images(3, channels, size)
    before = x.clone()
    for severity in SEVERITIES:
        y = corrupted(x, kind, severity)
        assert y.shape == x.shape
        assert y.dtype is torch.float32
        assert 0.0 <= float(y.min()) <= float(y.max()) <= 1.0  # no NaN either
        assert not torch.equal(y, x) or size < 16  # a tiny image may be left as it is
    assert torch.equal(x, before)


def test_there_are_at_least_twelve_kinds_at_five_severities() -> None:
    assert len(KINDS) >= 12
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_changes_images_more(kind: str) -> None:
    x = images(64)
    change = [float((corrupted(x, kind, severity) - x).square().mean()) for severity in SEVERITIES]
    assert change == sorted(change)
    assert change[0] > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide_and_only_them(kind: str) -> None:
    x = images()
    torch.manual_seed(1)
    first = corrupted(x, kind)
    torch.manual_seed(2)
    assert torch.equal(first, corrupted(x, kind))
    assert torch.equal(first, corrupted(x, kind, seed=1)) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", sorted(RANDOM))
def test_chance_differs_from_image_to_image_and_from_batch_to_batch(kind: str) -> None:
    same = images(1).expand(8, -1, -1, -1).contiguous()
    corruption = Corruption(kind, 5, 0, CPU)
    first, second = corruption(same), corruption(same)
    assert any(not torch.equal(first[0], other) for other in first[1:])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - RANDOM))
def test_a_batch_is_treated_as_each_image_alone(kind: str) -> None:
    x = images(5)
    alone = torch.cat([corrupted(one, kind) for one in x.split(1)])
    assert torch.allclose(corrupted(x, kind), alone, atol=1e-6)


# --- against other implementations -------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.5), (3, 1.1), (5, 2.0)])
def test_blur_is_scipys(severity: int, sigma: float) -> None:
    x = images(2)
    expected = ndimage.gaussian_filter(x.numpy(), sigma, axes=(2, 3), mode="mirror", radius=math.ceil(3 * sigma))
    assert corrupted(x, "gaussian_blur", severity).numpy() == pytest.approx(expected, abs=1e-5)


def libjpeg(image: Tensor, quality: int) -> Tensor:
    """A grey image of 1 × side × side in 0..1, as Pillow's libjpeg gives it back, in grey levels."""
    file = io.BytesIO()
    Image.fromarray((image[0] * 255).byte().numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file), dtype=np.float32))[None]


@pytest.mark.parametrize(("severity", "quality"), [(1, 50), (3, 20), (5, 7)])
def test_jpeg_of_grey_images_is_libjpegs(severity: int, quality: int) -> None:
    x = (images(4, channels=1, size=30) * 255).round() / 255  # 30 is no multiple of the blocks' eight
    found = (corrupted(x, "jpeg", severity) * 255).round()
    real = torch.stack([libjpeg(image, quality) for image in x])
    assert float((found - real).abs().mean()) < 0.5  # grey levels; libjpeg computes in integers
    assert float((real - x * 255).abs().mean()) > 1.0


@pytest.mark.parametrize(("severity", "pixels"), [(1, 20), (5, 6)])
def test_pixelate_is_torchvisions_resize_down_and_up(severity: int, pixels: int) -> None:
    x = images(3)
    small = transforms.resize(x, [pixels, pixels], antialias=True)
    expected = transforms.resize(small, [32, 32], interpolation=transforms.InterpolationMode.NEAREST)
    assert torch.allclose(corrupted(x, "pixelate", severity), expected, atol=1e-5)


def test_rotation_is_torchvisions_one_way_or_the_other() -> None:
    x = images(16)
    inner = (..., slice(10, 22), slice(10, 22))  # the border is filled otherwise
    ways = [
        transforms.rotate(x, angle, interpolation=transforms.InterpolationMode.BILINEAR)[inner] for angle in (30, -30)
    ]
    y = corrupted(x, "rotate", 5)[inner]
    taken = [min((0, 1), key=lambda w: float((ways[w][i] - y[i]).abs().max())) for i in range(16)]
    assert set(taken) == {0, 1}
    assert all(torch.allclose(ways[way][i], y[i], atol=1e-4) for i, way in enumerate(taken))


def test_zoom_blur_keeps_the_middle_of_a_symmetric_image() -> None:
    at = (torch.arange(33) - 16.0).abs()
    cone = (1.0 - torch.hypot(at[:, None], at[None]) / 24.0).clamp(0.0, 1.0)[None, None]
    y = corrupted(cone, "zoom_blur", 5)
    assert torch.allclose(y, y.flip(-1), atol=1e-5)
    assert torch.allclose(y, y.transpose(-1, -2), atol=1e-5)
    assert bool((y >= cone - 1e-2).all())  # magnified, a falling cone only rises


def test_noise_has_the_strength_that_is_written() -> None:
    grey = torch.full((64, 3, 32, 32), 0.5)
    assert float(corrupted(grey, "gaussian_noise", 2).std()) == pytest.approx(0.08, rel=0.01)
    assert float(corrupted(grey, "speckle_noise", 2).std()) == pytest.approx(0.25 * 0.5, rel=0.01)
    photons = corrupted(grey, "shot_noise", 2) * 25
    assert torch.allclose(photons, photons.round(), atol=1e-4)
    assert float(photons.mean()) == pytest.approx(12.5, rel=0.01)
    impulses = corrupted(grey, "impulse_noise", 3)
    assert [float((impulses == value).float().mean()) for value in (0.0, 1.0)] == pytest.approx([0.045] * 2, abs=0.003)


def test_light_follows_its_formulas() -> None:
    x = images(4)
    assert torch.equal(corrupted(x, "brightness", 2), (x + 0.2).clamp(0.0, 1.0))
    expected = transforms.adjust_contrast(images(4, channels=1), 0.5)
    assert torch.allclose(corrupted(images(4, channels=1), "contrast", 2), expected, atol=1e-6)


def test_an_occlusion_is_one_square_of_grey() -> None:
    y = corrupted(torch.zeros(50, 2, 20, 20), "occlusion", 3)
    assert y.unique().tolist() == [0.0, 0.5]
    assert (y == 0.5).sum((1, 2, 3)).tolist() == [2 * 8 * 8] * 50
    spots = [tuple(np.argwhere(image[0].numpy())[0]) for image in y]
    assert len(set(spots)) > 20
    assert {0, 12} <= {row for row, _ in spots}  # it reaches every edge


@pytest.mark.parametrize(
    "kind", ["defocus_blur", "motion_blur", "gaussian_blur", "zoom_blur", "elastic", "rotate", "pixelate"]
)
def test_what_moves_pixels_leaves_an_even_image_as_it_is(kind: str) -> None:
    even = torch.full((4, 3, 32, 32), 0.37)
    assert torch.allclose(corrupted(even, kind, 5), even, atol=1e-5)


def test_blurs_smear_a_dot_as_far_as_they_say() -> None:
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1.0
    disk = corrupted(dot, "defocus_blur", 4)  # radius 2.5 of 32
    assert int((disk > 1e-4).sum()) == pytest.approx(math.pi * 3.0**2, abs=5)
    line = corrupted(dot, "motion_blur", 5)
    assert 7 <= int((line > 1e-4).sum()) <= 11  # eleven along an axis, fewer on a diagonal
    for y in (disk, line):
        assert float(y.sum()) == pytest.approx(1.0, abs=1e-5)
