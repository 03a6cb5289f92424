"""Tensors in files without their zeros: every bit comes back, whole and by rows; safetensors reads the same file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekit.models import stored
from sparsekit.models.stored import Lazy, StoredTensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def mostly_zero(dtype: torch.dtype, share: float = 0.8) -> Tensor:
    """Zeros of both signs among numbers, a NaN and an infinity."""
    chance = torch.Generator().manual_seed(0)
    tensor = torch.randn(37, 5, 3, generator=chance) * (torch.rand(37, 5, 3, generator=chance) > share)
    tensor[3, 2, 1], tensor[36, 4, 2], tensor[0, 0, 0] = math.nan, -math.inf, 1e-7  # a subnormal number in float16
    tensor[1, 1, 1], tensor[2, 2, 2] = -0.0, 0.0
    return tensor.to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_every_bit_comes_back_and_rows_do(dtype: torch.dtype, share: float, tmp_path: Path) -> None:
    tensor = mostly_zero(dtype, share)
    stored.save(tmp_path / "a.safetensors", {"w": tensor, "plain": tensor.abs() + 1})
    found = StoredTensors(tmp_path / "a.safetensors")
    assert list(found) == ["plain", "w"]
    assert (found["w"].dtype, found["w"].shape) == (dtype, tensor.shape)
    assert bits(found["w"]) == bits(tensor)
    assert bits(found["plain"]) == bits(tensor.abs() + 1)
    for rows in (slice(0, 1), slice(3, 11), slice(17, 90), slice(4, 4)):
        assert bits(found.rows("w", rows)) == bits(tensor[rows])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_is_as_large_as_the_values_that_are_kept(share: float, tmp_path: Path) -> None:
    weight = torch.randn(300, 400)
    mask = torch.rand(300, 400) >= share
    stored.save(tmp_path / "a.safetensors", {"w": (weight * mask).abs(), "mask": mask})
    size = 4 * int(mask.sum()) + 2 * weight.numel() / 8
    assert size < (tmp_path / "a.safetensors").stat().st_size < size + 2000


def test_safetensors_reads_the_parts_and_a_file_that_it_wrote_is_read(tmp_path: Path) -> None:
    weight, mask = mostly_zero(torch.float32), torch.rand(37, 5, 3) > 0.5
    stored.save(
        tmp_path / "a.safetensors", {"w": weight, "mask": mask, "n": torch.tensor(3), "none": torch.empty(0, 4)}
    )
    parts = load_file(tmp_path / "a.safetensors")
    kept = (weight != 0).flatten()
    assert bits(parts["w:values"]) == bits(weight.flatten()[kept])
    ones = 2 ** torch.arange(8, dtype=torch.uint8)
    assert ((parts["w:bits"][:, None] & ones) != 0).flatten()[: weight.numel()].tolist() == kept.tolist()
    assert (parts["n"].item(), parts["none"].shape) == (3, (0, 4))
    save_file({"w": weight, "mask": mask}, tmp_path / "b.safetensors")
    found = StoredTensors(tmp_path / "b.safetensors")
    assert bits(found["w"]) == bits(weight)
    assert torch.equal(found["mask"], mask)


def test_tensors_are_made_one_after_another(tmp_path: Path) -> None:
    alive: list[int] = []

    def make(name: str) -> Tensor:
        alive.append(int(name))
        return torch.full((600,), float(name))

    names = [str(number) for number in range(5)]
    stored.save(tmp_path / "a.safetensors", Lazy.of(names, make))
    assert alive == list(range(5))
    found = StoredTensors(tmp_path / "a.safetensors", prefix="3")
    assert list(found) == [""]
    assert found[""].tolist() == [3.0] * 600


def test_a_name_that_needs_more_room_in_the_header_gets_it(tmp_path: Path) -> None:
    tensor = torch.ones((1,) * 300)
    stored.save(tmp_path / "a.safetensors", {'"\n': tensor})
    assert torch.equal(StoredTensors(tmp_path / "a.safetensors")['"\n'], tensor)
    assert torch.equal(load_file(tmp_path / "a.safetensors")['"\n'], tensor)


def test_a_write_that_is_cut_off_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    def fails() -> Tensor:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        stored.save(tmp_path / "a.safetensors", Lazy({"a": lambda: torch.ones(3), "b": fails}))
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("w:values", {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}),
        ("w:bits", {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}),
        ("w:values", {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}),
        ("w:values", {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}),
        ("w:values", {"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}),
    ],
)
def test_parts_that_do_not_fit_one_another_are_an_error(name: str, entry: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stored.save(path, {"w": mostly_zero(torch.float32)})
    data = path.read_bytes()
    room = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + room]) | {name: entry}
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(room) + data[8 + room :])
    with pytest.raises((ValueError, LookupError, OSError)):
        StoredTensors(path)["w"]
