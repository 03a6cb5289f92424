"""How many weights each layer keeps, against counts worked by hand."""

from math import inf, prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsekit.errors import UserError
from sparsekit.pruning.allocation import check_floor, erk, floors, kept_total, uniform

RULES = {"uniform": uniform, "erk": erk}
Shapes = dict[str, tuple[int, ...]]

TWO: Shapes = {"small": (10, 10), "large": (100, 100)}  # Σ dims 20 and 200, 100 and 10,000 weights
CASCADE: Shapes = {"a": (2, 2), "b": (4, 4), "c": (10, 20)}  # Σ dims 4, 8, 30; 4, 16 and 200 weights


def sizes(shapes: Shapes) -> dict[str, int]:
    return {name: prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "sparsity", "kept"),
    [
        (TWO, 0.9, 1010),
        (TWO, 0.0, 10100),
        ({"a": (5,)}, 0.5, 3),  # 2.5 weights pruned rounds to the even 2
        ({"a": (7,)}, 0.5, 3),  # 3.5 rounds to the even 4
        ({"a": (3, 3, 3, 3), "b": (10,)}, 0.98, 2),  # 0.98 · 91 = 89.18
    ],
)
def test_the_number_of_kept_weights(shapes: Shapes, sparsity: float, kept: int) -> None:
    assert kept_total(shapes, sparsity) == kept


@pytest.mark.parametrize(
    ("shapes", "sparsity", "counts"),
    [
        (TWO, 0.9, {"small": 10, "large": 1000}),
        # 2.4, 3.6 and 6 of 12 kept: floors 2, 3, 6; the largest remainder, 0.6, takes the missing one
        ({"a": (4,), "b": (6,), "c": (10,)}, 0.4, {"a": 2, "b": 4, "c": 6}),
        # 2.5 each of 7: floors 2, 2, 2; of equal remainders the first
        ({"a": (5,), "b": (5,), "c": (5,)}, 0.5, {"a": 3, "b": 2, "c": 2}),
        (TWO, 0.0, {"small": 100, "large": 10000}),
    ],
)
def test_uniform_gives_every_layer_the_same_density(shapes: Shapes, sparsity: float, counts: dict[str, int]) -> None:
    assert uniform(shapes, sparsity, sizes(shapes)) == counts


@pytest.mark.parametrize(
    ("shapes", "sparsity", "counts"),
    [
        # 1,010 kept: ε = 1010 / 220; small 20 ε = 91.82, large 200 ε = 918.18
        (TWO, 0.9, {"small": 92, "large": 918}),
        # 2,020 kept: ε = 2020 / 220 would keep 183.6 of the small layer's 100: dense, and the large one has the rest
        (TWO, 0.8, {"small": 100, "large": 1920}),
        # 82 kept of 220: ε = 82 / 42 makes a dense (7.8 > 4), then ε = 78 / 38 makes b dense (16.4 > 16)
        (CASCADE, 138 / 220, {"a": 4, "b": 16, "c": 62}),
        # 124 kept: ε = 124 / 64 makes a dense (7.75 > 4); the others share the surplus in proportion, ε = 120 / 60
        ({"a": (2, 2), "b": (10, 10), "c": (20, 20)}, 380 / 504, {"a": 4, "b": 40, "c": 80}),
        # 42 kept: ε = 1 meets a's density of 1 exactly
        (CASCADE, 178 / 220, {"a": 4, "b": 8, "c": 30}),
        # convolutions: Σ dims 8 + 3 + 3 + 3 = 17 of 216 weights and 16 + 8 + 3 + 3 = 30 of 1,152; 137 kept of 1,368
        ({"first": (8, 3, 3, 3), "second": (16, 8, 3, 3)}, 1 - 137 / 1368, {"first": 50, "second": 87}),
        (CASCADE, 0.0, {"a": 4, "b": 16, "c": 200}),
    ],
)
def test_erk_keeps_more_of_small_layers(shapes: Shapes, sparsity: float, counts: dict[str, int]) -> None:
    assert erk(shapes, sparsity, sizes(shapes)) == counts


@pytest.mark.parametrize("rule", RULES)
def test_what_a_layer_cannot_give_the_next_ones_do(rule: str) -> None:
    plain = RULES[rule](TWO, 0.9, sizes(TWO))
    available = {"small": plain["small"] - 1, "large": 10000}
    assert RULES[rule](TWO, 0.9, available) == {"small": plain["small"] - 1, "large": plain["large"] + 1}


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_with_nothing_left_keeps_nothing(rule: str) -> None:
    assert RULES[rule](TWO, 0.9, {"small": 0, "large": 10000}) == {"small": 0, "large": 1010}


@st.composite
def layers(draw: st.DrawFn) -> tuple[Shapes, dict[str, int]]:
    shapes = draw(
        st.dictionaries(
            st.text("abcdef", min_size=1, max_size=3),
            st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
            min_size=1,
            max_size=8,
        )
    )
    return shapes, {name: draw(st.integers(0, size)) for name, size in sizes(shapes).items()}


@pytest.mark.parametrize("rule", RULES)
@given(layers=layers(), sparsity=st.floats(0.0, 0.9999))
def test_counts_are_exact_for_any_layers(rule: str, layers: tuple[Shapes, dict[str, int]], sparsity: float) -> None:
    shapes, available = layers
    counts = RULES[rule](shapes, sparsity, available)
    assert list(counts) == list(shapes)
    assert all(0 <= counts[name] <= available[name] for name in shapes)
    total = sum(sizes(shapes).values())
    assert sum(counts.values()) == min(total - round(sparsity * total), sum(available.values()))


@pytest.mark.parametrize("rule", RULES)
@given(layers=layers(), sparsity=st.floats(0.0, 0.9999))
def test_nothing_is_a_weight_off_where_everything_is_available(
    rule: str, layers: tuple[Shapes, dict[str, int]], sparsity: float
) -> None:
    shapes = layers[0]
    counts = RULES[rule](shapes, sparsity, sizes(shapes))
    if rule == "uniform":
        # the layers' own quotas sum up to (1 - sparsity) · N, half a weight at most from the whole number wanted
        assert all(abs(counts[n] - (1 - sparsity) * size) < 1.51 for n, size in sizes(shapes).items())
    else:
        # in layers that are not dense, counts go with Σ dims: rounding moves each by at most one
        free = [n for n, size in sizes(shapes).items() if counts[n] < size - 1]
        for left in free:
            for right in free:
                quota = counts[right] * sum(shapes[left]) / sum(shapes[right])
                assert abs(counts[left] - quota) <= 1 + sum(shapes[left]) / sum(shapes[right])


# --- floors -------------------------------------------------------------------------------------------


def test_a_floor_is_a_number_of_weights_or_a_fraction_of_a_layer() -> None:
    shapes = {"a": (3,), "b": (4, 25)}
    assert floors(shapes, 0.0) == {"a": 0, "b": 0}
    assert floors(shapes, 5.0) == {"a": 3, "b": 5}
    assert floors(shapes, 0.07) == {"a": 1, "b": 7}  # as a float 0.07 · 100 is above 7
    assert floors(shapes, 5.0, share=0.5) == {"a": 1, "b": 5}  # a pattern keeps half at most


def test_floors_by_hand() -> None:
    shapes = {"a": (2, 2), "b": (10, 10)}
    every = {"a": 4, "b": 100}
    # 10 of 104 stay; at one density "a" would keep 0.38, by the kernel 10 · 4/24 = 1.67
    assert uniform(shapes, 94 / 104, every, {"a": 2, "b": 2}) == {"a": 2, "b": 8}
    assert erk(shapes, 94 / 104, every, {"a": 3, "b": 3}) == {"a": 3, "b": 7}
    assert erk(shapes, 94 / 104, every, {"a": 0, "b": 9}) == {"a": 1, "b": 9}


@given(layers=layers(), sparsity=st.floats(0.0, 1.0), floor=st.sampled_from([1.0, 2.0, 5.0, 0.05, 0.3]))
@pytest.mark.parametrize("rule", RULES)
def test_counts_with_a_floor_are_exact_and_a_threshold_explains_them(
    rule: str, layers: tuple[Shapes, dict[str, int]], sparsity: float, floor: float
) -> None:
    """Each layer keeps ε · share within its limits: the ε of all layers between their limits is one."""
    shapes, available = layers
    least = {name: min(count, available[name]) for name, count in floors(shapes, floor).items()}
    total = kept_total(shapes, sparsity)
    assume(sum(least.values()) <= total <= sum(available.values()))
    counts = RULES[rule](shapes, sparsity, available, least)
    assert sum(counts.values()) == total
    assert all(least[name] <= counts[name] <= available[name] for name in shapes)
    share = {name: (prod(shape) if rule == "uniform" else sum(shape)) for name, shape in shapes.items()}
    free = [name for name in shapes if least[name] < counts[name] < available[name]]
    low = max(((counts[name] - 2) / share[name] for name in free), default=0.0)
    high = min(((counts[name] + 2) / share[name] for name in free), default=inf)
    assert low <= high


def test_a_floor_that_the_sparsity_cannot_give_is_refused_with_numbers_that_fit() -> None:
    shapes = {"a": (3,), "b": (4, 25)}
    with pytest.raises(UserError) as caught:
        check_floor(("--masks.floor", "--sparsity"), shapes, 8.0, 0.93)  # 3 + 8 of the 7 that stay
    text = str(caught.value)
    assert all(part in text for part in ("--masks.floor 8", "11 of the 103", "--sparsity 0.93 leaves 7", "4 or less"))
    check_floor(("--masks.floor", "--sparsity"), shapes, 4.0, 0.93)
    check_floor(("--masks.floor", "--sparsity"), shapes, 8.0, float(text.split("a sparsity of ")[1].split()[0]))
    with pytest.raises(UserError, match=r"--masks\.floor 5 "):
        check_floor(("--masks.floor", "--sparsity"), shapes, 5.0, 0.93)
