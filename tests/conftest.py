"""What every test shares."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

# `make test` tries the same examples everywhere and always; `make fuzz` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the numbers and words of our own modules, which Hypothesis tries too, out of the fixed examples.

    Which modules are imported depends on the tests that a worker ran before.
    """
    if not config.getoption("hypothesis_profile", None) and hasattr(providers, "_get_local_constants"):
        nothing = providers.Constants()
        providers._get_local_constants = lambda: nothing


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
