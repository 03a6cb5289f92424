"""What is told of a trial step that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import optimizer, tiny_config

from sparsekit.errors import UserError
from sparsekit.training.prepare import prepare


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: out of memory\nmore"), RuntimeError),
        (RuntimeError("this optimizer is for sparse gradients\nmore"), UserError),
    ],
)
def test_a_lack_of_memory_is_not_the_optimizers_fault(
    error: RuntimeError, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(told) as caught:
        prepare(tiny_config(optimizer=optimizer()))
    assert type(caught.value) is told
    assert ("--optimizer.name" in str(caught.value)) == (told is UserError)
    assert "more" not in str(caught.value) or told is RuntimeError
