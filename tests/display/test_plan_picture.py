"""The picture of a plan, read back from its characters."""

from __future__ import annotations

import pytest

from sparsekit.cli import main
from sparsekit.display import plan_picture
from sparsekit.planning.plan import PlanRow, PlanSummary

WIDTH = 17 + 40


def segment(
    index: int, start: float, epochs: float, sparsity: float, lr: tuple[float, float], replicas: int
) -> PlanRow:
    return PlanRow(index, start, epochs, sparsity, (lr[0] / 2, lr[0]), (lr[1], lr[1]), replicas)


PLAN = PlanSummary(
    (
        segment(0, 0.0, 10.0, 0.0, (0.2, 0.1), 1),
        segment(1, 10.0, 10.0, 0.45, (0.1, 0.0), 3),
        segment(2, 20.0, 20.0, 0.9, (0.1, 0.0), 12),
    ),
    40.0,
    100.0,
)


def drawn(plain: bool = False) -> list[str]:
    return plan_picture.plan(PLAN, WIDTH, plain).splitlines()


def heights(lines: list[str]) -> list[int]:
    """Eighths of a line that each column is filled to."""
    levels = " ▁▂▃▄▅▆▇█"
    return [sum(levels.index(line.ljust(WIDTH)[17 + x]) for line in lines) for x in range(40)]


def test_bars_are_as_high_as_the_sparsity() -> None:
    assert drawn()[0].startswith("sparsity    90 %")
    assert heights(drawn()[:4]) == [0] * 10 + [16] * 10 + [32] * 20


def test_rates_are_the_highest_and_fall_within_a_segment() -> None:
    lines = drawn()[5:8]
    assert lines[0].startswith("rate       0.195")
    found = heights(lines)
    assert found[0] == 24
    assert found[:10] == sorted(found[:10], reverse=True)
    assert found[9] == pytest.approx(24 * 0.105 / 0.195, abs=1)
    assert found[10] == pytest.approx(24 * 0.095 / 0.195, abs=1)
    assert found[19] <= 1


def test_replicas_fork_and_merge_where_segments_begin_and_end() -> None:
    assert drawn()[-1] == "replicas".ljust(17) + "1" + "─" * 9 + "╞3" + "═" * 7 + "╡" + "╞12" + "═" * 16 + "╡"


def test_epochs_stand_below() -> None:
    assert drawn()[-2].split() == ["0", "10", "20", "30", "40"]
    assert drawn()[-2].index("20") == 17 + 20


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = drawn(plain=True)
    assert "\n".join(lines).isascii()
    assert lines[-1].endswith("1---------<3=======><12================>")


@pytest.mark.parametrize("width", [10, 57, 80, 100])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_no_line_is_wider_than_asked(width: int, count: int) -> None:
    rows = tuple(segment(i, i / count, 1 / count, 0.5, (1.0, 0.0), 100 if i % 2 else 1) for i in range(count))
    pruned_only = segment(count, 1.0, 0.0, 0.9, (1.0, 0.0), 1)
    text = plan_picture.plan(PlanSummary((*rows, pruned_only), 1.0, 1.0), width)
    assert all(len(line) <= max(width, 40) for line in text.splitlines())
    assert "90 %" in text


def test_plan_draws_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["plan", "--sparsity", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "replica-epochs" in out
    assert "sparsity    80 %" in out
    assert "╞3" in out or "<3" in out
