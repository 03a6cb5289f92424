"""Time and memory of averaging ResNet-50-sized candidates, by their number, and against loading all at once.

python benchmarks/merging.py [--quick]
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from _measure import Section, alternate, child, extra_bytes, main, milliseconds, ratio, timed

from sparsekit._types import Tensors
from sparsekit.api import Score
from sparsekit.merging.average import average
from sparsekit.merging.candidates import FileCandidate, read_tensors
from sparsekit.models.state import State, cpu_state_dict


def candidates(folder: Path, count: int) -> list[FileCandidate]:
    """Random ones with momentum."""
    torch.manual_seed(0)
    tensors = cpu_state_dict(timm.create_model("resnet50"))
    found = []
    for index in range(count):
        moved = {n: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in tensors.items()}
        momentum = {f"{n}/momentum_buffer": t.clone() for n, t in moved.items() if t.is_floating_point()}
        path = folder / f"{index}.safetensors"
        found.append(FileCandidate.write(path, index, State(moved, {}, optimizer=momentum), Score(0.0, 0.0)))
    return found


def streamed(found: Sequence[FileCandidate]) -> Tensors:
    """Our mean."""
    return average(found, [1 / len(found)] * len(found), found[0].names())


def at_once(found: Sequence[FileCandidate]) -> Tensors:
    """The mean as one would write it: load all, then average, in float64 too."""
    loaded = [read_tensors(candidate) for candidate in found]
    return {
        name: sum((one[name].double() / len(found) for one in loaded[1:]), loaded[0][name].double() / len(found)).to(
            tensor.dtype
        )
        for name, tensor in loaded[0].items()
    }


WAYS = {"streamed": streamed, "all at once": at_once}


def extra(folder: Path, count: int, way: str) -> float:
    """Extra memory in multiples of one model; the candidates' files are there already."""
    found = [FileCandidate(folder / f"{i}.safetensors", i, Score(0.0, 0.0), "") for i in range(count)]
    size = sum(math.prod(found[0].read(name).shape) * 4 for name in found[0].names())
    return extra_bytes(lambda: WAYS[way](found)) / size


def measure(quick: bool = False) -> Section:
    """A row a number of candidates."""
    section = Section(
        "Merging (ResNet-50, uniform, from candidates' files)",
        ["candidates", "sparsekit", "all at once", "ratio of times [95 % interval]", "extra memory", "all at once"],
    )
    rounds = 3 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        found = candidates(Path(folder), 10)
        for count in (2, 10) if quick else (2, 3, 5, 10):
            times = alternate({w: timed(partial(run, found[:count])) for w, run in WAYS.items()}, rounds)
            share = ratio(times["streamed"], times["all at once"])
            memory = [f"{child('merging.py', '--child', folder, str(count), way)['extra']:.2f}×" for way in WAYS]
            section.add(count, *(milliseconds(times[w]) for w in WAYS), share, *memory)
    section.notes.append("Extra memory in multiples of one model (102 MB), the result among it, in fresh processes.")
    return section


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"extra": extra(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])}))
    else:
        main(measure, __doc__)
