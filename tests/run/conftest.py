"""What the tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tracking import Say


@pytest.fixture
def quiet() -> Iterator[Say]:
    """A `warn` that nobody may call, not even another thread."""
    said: list[str] = []
    yield said.append
    assert said == []
