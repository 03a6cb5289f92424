"""benchmarks/gpu.py comes to its end where kernels do nothing: all of its parts get through, and say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from image_files import write_idx

if TYPE_CHECKING:
    from nullcuda.conftest import NullCuda

PARTS = ("right", "step", "replicas", "segment", "fashion")


@pytest.mark.nullcuda
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_the_cuda_benchmark_comes_to_its_end(nullcuda: NullCuda, tmp_path: Path) -> None:
    data, written = tmp_path / "fashion", tmp_path / "gpu.json"
    data.mkdir()
    write_idx(data, 3000, 600)
    # compiling takes a minute, and is tested on the CPU
    time = ["--compile", "0", *(word for part in PARTS for word in (f"--{part}", "400"))]
    printed = nullcuda.run("benchmark.py", "--quick", "--json", str(written), "--data", str(data), *time)
    section = json.loads(written.read_text())
    ends = {fact["part"]: fact["reason"] for fact in section["facts"] if "reason" in fact}
    assert ends == dict.fromkeys(PARTS, ""), printed
    rows = [row for row in section["rows"] if row[:2] != ["compile", "all"]]
    what = [row[1] for row in rows if "did not run" not in row[2] and "not measured" not in row[2]]
    # the tests that need a device fail where it computes nothing, and accuracies are 0
    assert len(what) == len(rows), printed
    told = "\n".join(what)
    for part in (
        "fit, gmp, uniform, fp32",
        "pytest -m cuda",
        "bf16, batch 16: GPU",
        "fp16, batch 16: host",
        "recorded step",
    ):
        assert part in told, printed
    for way in ("stacked", "graphs", "stacked graphs", "three ranks"):
        assert f"three replicas, {way}, 0.1 M" in told, printed
    for part in ("SGD: merge", "2 epochs, three ranks"):
        assert part in told, printed
