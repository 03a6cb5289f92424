"""What the tests of the contract kit share."""

import pytest

from sparsekit.testing import problem


@pytest.fixture(autouse=True)
def _short_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of three epochs instead of four, except in slow tests."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(problem, "EPOCHS", 3)
