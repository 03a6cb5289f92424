"""Threads that stand in one another's way, and precisions that a device has not."""

from __future__ import annotations

import os

import pytest
import torch

from sparsekit.errors import UserError
from sparsekit.models import device


@pytest.mark.parametrize(
    ("count", "load", "chosen", "told"),
    [(2, 3.3, None, True), (2, 2.9, None, False), (2, 3.3, "2", False), (1, 9.0, None, False)],
)
def test_busy_cores_are_told_of_where_nobody_chose_the_threads(
    count: int, load: float, chosen: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    expected = "the processor is busy (load 3.3 on 2 cores); OMP_NUM_THREADS=1 may be many times faster"
    assert device.crowded_threads() == (expected if told else "")


def test_tf32_is_for_devices_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--precision tf32.*cpu.*fp32"):
        device.use_precision("tf32", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UserError, match=r"--precision tf32.*cuda:0.*Ampere"):
        device.use_precision("tf32", torch.device("cuda:0"))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_convolutions_and_matrix_products_round_alike_on_cuda(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    try:
        torch.backends.cudnn.benchmark = True
        device.use_precision(precision, torch.device("cuda:0"))
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision.replace(
            "none", "ieee"
        )
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == (precision == "tf32")
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def test_a_run_that_goes_on_with_another_number_of_threads_is_told() -> None:
    now = torch.get_num_threads()
    assert device.changed_threads(None) == device.changed_threads(now) == ""
    told = device.changed_threads(now + 1)
    assert all(part in told for part in (f"OMP_NUM_THREADS={now + 1}", f"{now} now"))
