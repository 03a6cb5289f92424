"""What every test shares."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

# `make test` tries the same few examples everywhere, `make slow` the same and more; `make fuzz` looks for new ones.
settings.register_profile("fixed", max_examples=15, derandomize=True, deadline=None, database=None)
settings.register_profile("full", parent=settings.get_profile("fixed"), max_examples=100)
settings.register_profile("fuzz", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the numbers and words of our own modules, which Hypothesis tries too, out of the fixed examples.

    Which modules are imported depends on the tests that a worker ran before.
    """
    if config.getoption("hypothesis_profile", None) != "fuzz" and hasattr(providers, "_get_local_constants"):
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


@pytest.fixture(autouse=True)
def _no_plugin_of_another_test() -> Iterator[None]:
    """Forget plugins that were given as `module:name`, which stay known as long as a process lasts."""
    yield
    if registry := sys.modules.get("sparsekit.plugins.registry"):
        registry._ADOPTED.clear()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny_config()`, half of its prunable weights 0; one for all of a worker: only read it."""
    from tiny import tiny_config

    from sparsekit.launch import fit

    out = tmp_path_factory.mktemp("tiny") / "run"
    fit(tiny_config(out=out, sparsity=0.5))
    return out


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `cuda` where there is no CUDA device."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
