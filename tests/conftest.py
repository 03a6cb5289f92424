"""What every test shares."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_wandb_settings() -> Iterator[None]:
    """Hide the caller's W&B settings from the tests and from the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_SILENT", "true")
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `cuda` where there is no CUDA device."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
