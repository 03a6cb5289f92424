"""Corrupted test images: sixteen kinds at five severities, for batches of any image size and number of channels.

Kinds and severities follow Hendrycks and Dietterich (arXiv 1903.12261), but the strengths are our own, with lengths in
pixels of a 32-pixel image: these are not the images of CIFAR-10-C or ImageNet-C. Blurring, scaling and the cosine
transform are separable: each is one matrix, applied to rows and columns of a whole batch by two matrix products. Where
torchvision has the operation, the matrix is its result on the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sparsekit.seeds import derive

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption:
    """A corruption at one severity for one pass over a split.

    On one device, the same seed and the same sequence of batches give the same images.

    Args:
        kind: One of `KINDS`.
        severity: 1 to 5.
        seed: Seed of its random numbers.
        device: The device of the images.
    """

    def __init__(self, kind: str, severity: int, seed: int, device: torch.device) -> None:
        self._make, strengths = _KINDS[kind]
        self._strength = strengths[severity - 1]
        self._generator = torch.Generator(device).manual_seed(derive(seed, "corruption", kind, severity))

    def __call__(self, images: Tensor) -> Tensor:
        """Corrupted copies of images, both float32 [B, C, S, S] with values from 0 to 1."""
        return self._make(images, self._strength, self._generator).clamp_(0.0, 1.0)


# --- noise ------------------------------------------------------------------------------------------


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _gaussian_noise(x: Tensor, sigma: float, g: torch.Generator) -> Tensor:
    return _normal(x, g).mul_(sigma).add_(x)


def _speckle_noise(x: Tensor, sigma: float, g: torch.Generator) -> Tensor:
    return _normal(x, g).mul_(sigma).add_(1.0).mul_(x)


def _shot_noise(x: Tensor, photons: float, g: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=g).div_(photons)


def _impulse_noise(x: Tensor, share: float, g: torch.Generator) -> Tensor:
    chance = _uniform(tuple(x.shape), x, g)
    return torch.where(chance < share, (chance < share / 2).to(x.dtype), x)


# --- separable operations --------------------------------------------------------------------------------


def _apply(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply a matrix [S, S] to the columns and the rows of each image."""
    return matrix @ (x @ matrix.T)


@lru_cache(maxsize=256)
def _blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    taps = min(2 * math.ceil(3.0 * sigma) + 1, 2 * size - 1)  # reflection padding allows no more
    blurred: Tensor = transforms.gaussian_blur(torch.eye(size)[None], [1, taps], [1.0, sigma])
    return blurred[0].to(device)


def _gaussian_blur(x: Tensor, sigma: float, g: torch.Generator) -> Tensor:
    return _apply(x, _blur_matrix(x.shape[-1], sigma * x.shape[-1] / 32.0, x.device))


@lru_cache(maxsize=256)
def _zoom_matrix(size: int, crop: int, device: torch.device) -> Tensor:
    """The matrix that scales the middle `crop` rows up to `size` rows."""
    eye, first = torch.eye(size)[None], (size - crop) // 2
    enlarged: Tensor = transforms.resized_crop(eye, first, 0, crop, size, [size, size], antialias=False)
    return enlarged[0].to(device)


def _zoom_blur(x: Tensor, most: float, g: torch.Generator) -> Tensor:
    size = x.shape[-1]
    widest = max(1, round(size * (1.0 - 1.0 / most) / 2.0))  # pixels cut off on each side
    cuts = torch.linspace(0, widest, min(widest + 1, 8)).round().int().tolist()
    images = [_apply(x, _zoom_matrix(size, size - 2 * cut, x.device)) for cut in cuts]
    return torch.stack(images).mean(0)


@lru_cache(maxsize=256)
def _pixel_matrix(size: int, pixels: int, device: torch.device) -> Tensor:
    small = transforms.resize(torch.eye(size)[None], [pixels, size], antialias=True)
    large: Tensor = transforms.resize(small, [size, size], interpolation=InterpolationMode.NEAREST)
    return large[0].to(device)


def _pixelate(x: Tensor, share: float, g: torch.Generator) -> Tensor:
    return _apply(x, _pixel_matrix(x.shape[-1], max(2, round(share * x.shape[-1])), x.device))


_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)  # ITU-T T.81, table K.1


@lru_cache(maxsize=256)
def _jpeg_tables(size: int, quality: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cosine transform of blocks of eight pixels as one matrix, and the quantisation table of a whole image."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    dct = torch.cos(math.pi * (2.0 * n + 1.0) * k / 16.0) / 2.0
    dct[0] /= math.sqrt(2.0)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor([float(value) for value in _LUMINANCE.split()]).reshape(8, 8)
    table = ((table * scale + 50.0) / 100.0).floor().clamp(1.0, 255.0)
    blocks = size // 8
    transform = torch.kron(torch.eye(blocks), dct)  # block diagonal
    return transform.to(device), table.repeat(blocks, blocks).to(device)


def _jpeg(x: Tensor, quality: float, g: torch.Generator) -> Tensor:
    """JPEG compression of each channel as a grey image, without colour conversion and chroma subsampling."""
    size = x.shape[-1]
    more = -size % 8
    transform, table = _jpeg_tables(size + more, round(quality), x.device)
    padded = F.pad(x, (0, more, 0, more), mode="replicate") if more else x
    coefficients = _apply(padded * 255.0 - 128.0, transform).div_(table).round_().mul_(table)
    return _apply(coefficients, transform.T)[..., :size, :size].add_(128.0).round_().div_(255.0)


# --- moved pixels ---------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _disk(radius: float, device: torch.device) -> Tensor:
    reach = math.ceil(radius)
    at = torch.arange(-reach, reach + 1.0)
    kernel = (radius + 0.5 - torch.hypot(at[:, None], at[None])).clamp(0.0, 1.0)
    return (kernel / kernel.sum()).to(device)


def _defocus_blur(x: Tensor, radius: float, g: torch.Generator) -> Tensor:
    channels, size = x.shape[1:3]
    disk = _disk(min(max(radius * size / 32.0, 0.6), size / 2.0), x.device)  # a smaller disk is a single pixel
    reach = len(disk) // 2
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    return F.conv2d(padded, disk.expand(channels, 1, -1, -1), groups=channels)


def _motion_blur(x: Tensor, length: float, g: torch.Generator) -> Tensor:
    """The mean along a line in one of eight random directions."""
    size = x.shape[-1]
    reach = max(1, round(length * size / 64.0))
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    direction = torch.randint(8, (len(x),), generator=g, device=x.device)
    total = torch.zeros_like(x)
    for number in range(8):
        chosen, angle = (direction == number).nonzero()[:, 0], number * math.pi / 8.0
        some, mean = padded[chosen], torch.zeros_like(x[chosen])
        for step in range(-reach, reach + 1):
            row, column = reach + round(step * math.sin(angle)), reach + round(step * math.cos(angle))
            mean += some[..., row : row + size, column : column + size]
        total[chosen] = mean
    return total.div_(2 * reach + 1)


def _smooth(x: Tensor, channels: int, cells: int, g: torch.Generator) -> Tensor:
    """Smooth normal noise [B, channels, S, S], interpolated from a grid of `cells` by `cells` values."""
    coarse = torch.randn((len(x), channels, cells, cells), generator=g, device=x.device)
    return F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=False)


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _elastic(x: Tensor, distance: float, g: torch.Generator) -> Tensor:
    still = torch.eye(2, 3, device=x.device).expand(len(x), -1, -1)
    grid = F.affine_grid(still, list(x.shape), align_corners=False)
    return _sampled(x, grid + _smooth(x, 2, 5, g).permute(0, 2, 3, 1) * (distance / 16.0))


def _rotate(x: Tensor, degrees: float, g: torch.Generator) -> Tensor:
    """Rotate each image by the angle, to a random side."""
    sign = (_uniform((len(x),), x, g) < 0.5).to(x.dtype) * 2.0 - 1.0
    angle = sign * math.radians(degrees)
    nothing = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), nothing], 1), torch.stack([angle.sin(), angle.cos(), nothing], 1)]
    return _sampled(x, F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False))


def _occlusion(x: Tensor, share: float, g: torch.Generator) -> Tensor:
    """A grey square at a random position; its side is `share` of the image's."""
    size = x.shape[-1]
    side = max(1, round(share * size))
    corner = (_uniform((2, len(x), 1), x, g) * (size - side + 1)).floor()
    at = torch.arange(size, device=x.device)
    rows, columns = (at >= corner) & (at < corner + side)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], torch.full_like(x, 0.5), x)


# --- light ------------------------------------------------------------------------------------------------


def _brightness(x: Tensor, added: float, g: torch.Generator) -> Tensor:
    return x + added


def _contrast(x: Tensor, factor: float, g: torch.Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean).mul_(factor).add_(mean)


def _fog(x: Tensor, density: float, g: torch.Generator) -> Tensor:
    """A bright, patchy veil, equal in all channels."""
    field = torch.zeros_like(x[:, :1])
    for octave in (1, 2, 3):
        field += _smooth(x, 1, 2**octave, g) / 2.0**octave
    veil = (0.8 + 0.2 * field).clamp_(0.0, 1.0)
    return x * (1.0 - density) + veil * density


_KINDS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),  # standard deviation, white being 1
    "shot_noise": (_shot_noise, (60.0, 25.0, 12.0, 6.0, 3.0)),  # photons of a white pixel
    "impulse_noise": (_impulse_noise, (0.02, 0.05, 0.09, 0.15, 0.25)),  # share of values that turn black or white
    "speckle_noise": (_speckle_noise, (0.15, 0.25, 0.35, 0.45, 0.6)),  # standard deviation, in parts of the value
    "gaussian_blur": (_gaussian_blur, (0.5, 0.8, 1.1, 1.5, 2.0)),  # standard deviation in pixels of 32
    "defocus_blur": (_defocus_blur, (1.0, 1.5, 2.0, 2.5, 3.0)),  # radius in pixels of 32
    "motion_blur": (_motion_blur, (2.0, 4.0, 6.0, 8.0, 10.0)),  # length in pixels of 32
    "zoom_blur": (_zoom_blur, (1.1, 1.2, 1.3, 1.45, 1.6)),  # largest magnification
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added, white being 1
    "contrast": (_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),  # what is left of the distance to the mean
    "fog": (_fog, (0.2, 0.35, 0.5, 0.6, 0.7)),  # share of the veil
    "pixelate": (_pixelate, (0.62, 0.47, 0.375, 0.28, 0.2)),  # side that is left
    "jpeg": (_jpeg, (50.0, 30.0, 20.0, 12.0, 7.0)),  # quality, 1 to 100
    "elastic": (_elastic, (0.4, 0.7, 1.0, 1.4, 1.8)),  # typical displacement in pixels of 32
    "rotate": (_rotate, (5.0, 10.0, 15.0, 22.0, 30.0)),  # degrees
    "occlusion": (_occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),  # side of the square
}
KINDS = tuple(_KINDS)
