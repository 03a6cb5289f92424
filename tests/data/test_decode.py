"""Image files of every kind as 8-bit RGB, held against values worked by hand and Pillow's own."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsekit.data.decode import dark_note, read_rgb
from sparsekit.errors import RunError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
GREY = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def read(path: Path) -> np.ndarray:
    image = read_rgb(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm", "big.tif", "wide.tif", "white.tif"])
def test_16_bit_grey_keeps_its_range_alike_in_every_file(name: str, tmp_path: Path) -> None:
    image = Image.fromarray(GREY)
    if name == "big.tif":
        image = Image.frombytes("I;16B", (256, 256), GREY.astype(">u2").tobytes())
    if name == "wide.tif":
        image = Image.fromarray(GREY.astype(np.int32))
    options: dict[str, Any] = {"tiffinfo": {262: 0}} if name == "white.tif" else {}  # 0 is white
    image.save(tmp_path / name, **options)
    expected = np.array([(value + 128) // 257 for value in range(65536)])  # value / 257, rounded
    found = read(tmp_path / name)
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(found[..., 0].ravel(), expected[::-1] if name == "white.tif" else expected)


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    """No image is stretched to its own range."""
    Image.fromarray(np.full((4, 4), 2570, np.uint16)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == 10).all()


def test_white_may_be_less_than_65535(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 4095]], np.uint16)).save(tmp_path / "a.png")
    found = np.asarray(read_rgb(str(tmp_path / "a.png"), white=4095))[0, :, 0]
    assert found.tolist() == [0, 62, 255]  # 62.27
    with pytest.raises(RunError, match=r"0 to 4095.*2,000"):
        read_rgb(str(tmp_path / "a.png"), white=2000)


@pytest.mark.parametrize(
    ("brightest", "white"), [(4000, 4095), (1023, 1023), (16000, 16383), (255, None), (20000, None)]
)
def test_images_of_fewer_bits_are_told_with_the_option(brightest: int, white: int | None, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    for path in paths:
        Image.fromarray(np.full((4, 4), 7, np.uint16)).save(path)
    Image.fromarray(np.full((4, 4), brightest, np.uint16)).save(paths[0])
    note = dark_note(paths)
    assert (f"--data.white {white}" in note) if white else not note
    Image.fromarray(RGB).save(paths[0])
    assert dark_note(paths) == ""


def test_float_grey_runs_from_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 64, 128, 255]  # 63.75, 127.5 to the even, 255


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.array([[0.0, 255.0]], np.float32), "0 to 255"),
        (np.array([[0.0, np.nan]], np.float32), "nan"),
        (np.array([[-1024, 3071]], np.int32), "-1024 to 3071"),
        (np.array([[0, 70_000]], np.int32), "70"),
        (np.array([[0, 200]], np.int32), "200"),
    ],
)
def test_values_out_of_the_range_of_their_type_are_refused_by_name(
    values: np.ndarray, named: str, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(RunError) as caught:
        read(tmp_path / "a.tif")
    assert str(tmp_path / "a.tif") in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tif", "gif", "jp2", "avif", "ppm", "jpg"])
def test_kinds_of_files_are_read_as_pillow_reads_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(read(path), np.asarray(Image.open(path).convert("RGB")))


def test_transparency_is_dropped_and_the_colours_beneath_show(tmp_path: Path) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (20, 30, 1)).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(path)
    np.testing.assert_array_equal(read(path), RGB)
    Image.fromarray(np.concatenate([RGB[..., :1], alpha], axis=2)).save(path)
    np.testing.assert_array_equal(read(path), RGB[..., :1].repeat(3, axis=2))
    palette = Image.fromarray(RGB).convert("P")
    for transparency in (3, bytes(range(256))):
        palette.save(path, transparency=transparency)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(read(path), np.asarray(palette.convert("RGB")))


def test_other_modes_frames_and_orientations(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    image.convert("1").save(tmp_path / "one.png")
    assert set(read(tmp_path / "one.png").ravel()) == {0, 255}
    image.convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), RGB)
    image.save(tmp_path / "frames.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    np.testing.assert_array_equal(read(tmp_path / "frames.tif"), RGB)
    turned = Image.Exif()
    turned[274] = 6
    image.save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(read(tmp_path / "turned.png"), RGB)


def test_an_image_of_too_many_pixels_says_what_to_do(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    path = tmp_path / "slide.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    with pytest.raises(RunError, match=r"slide\.png.*400000000 pixels.*tiles"):
        read(path)
