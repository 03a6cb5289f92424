"""The rules for an allocation's function, tried on the shapes of small networks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from sparsekit.plugins.choices import call_faults
from sparsekit.pruning import allocation
from sparsekit.testing.hashing import function_differs
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of

_NETWORKS: tuple[dict[str, tuple[int, ...]], ...] = (
    {"stem.weight": (4, 1, 3, 3), "block.weight": (8, 4, 3, 3), "depthwise.weight": (8, 1, 3, 3), "fc.weight": (10, 8)},
    {"fc.weight": (7, 5)},
    {"a.weight": (64, 64), "b.weight": (1, 64), "c.weight": (1, 1)},
)
_SPARSITIES = (0.0, 0.1, 0.5, 0.8, 0.9, 0.98)


@dataclass(frozen=True)
class AllocationCase:
    """An allocation's function."""

    function: Callable[..., Any]

    def counts(self, *arguments: Any) -> Any:
        """What the function returns; raises Broken where it raises."""
        if any(call_faults("allocation", self.function)):
            raise Skipped("it cannot be called, see takes_four_arguments")
        try:
            return self.function(*arguments)
        except Exception as error:
            raise Broken(f"with {_said(*arguments)} it raised {describe(error)}") from error

    def is_sound(self, *arguments: Any) -> None:
        """Raise Broken unless the numbers may be used."""
        for fault in allocation.faults(self.counts(*copy.deepcopy(arguments)), *arguments):
            raise Broken(f"with {_said(*arguments)}: {fault}")

    def digest(self) -> str:
        """A digest of the numbers for some networks."""
        found = []
        for shapes in _NETWORKS:
            available = {name: prod(shape) for name, shape in shapes.items()}
            for sparsity in _SPARSITIES:
                counts = self.counts(shapes, sparsity, dict(available), dict.fromkeys(shapes, 0))
                found.append(sorted(counts.items()))
        return hashlib.sha256(repr(found).encode()).hexdigest()


def describes_itself(case: AllocationCase) -> None:
    """The first line of the docstring says what `sparsekit plugins list` shows."""
    need(bool((case.function.__doc__ or "").strip()), "it has no docstring")


def takes_four_arguments(case: AllocationCase) -> None:
    """It is called with (shapes, sparsity, available, least), by position."""
    for fault in call_faults("allocation", case.function):
        raise Broken(fault)


def adds_up(case: AllocationCase) -> None:
    """It gives every layer of `shapes` a whole number of weights to keep, in all N − round(sparsity · N) of N."""
    for shapes in _NETWORKS:
        available = {name: prod(shape) for name, shape in shapes.items()}
        for sparsity in _SPARSITIES:
            case.is_sound(shapes, sparsity, available, dict.fromkeys(shapes, 0))


@after("adds_up")
def keeps_at_most_what_is_available(case: AllocationCase) -> None:
    """It keeps no more weights of a layer than are `available`: earlier prunings and patterns leave fewer than all."""
    for shapes, sparsity, available in _scarce():
        case.is_sound(shapes, sparsity, available, dict.fromkeys(shapes, 0))


@after("adds_up", "keeps_at_most_what_is_available")
def keeps_what_is_asked_for(case: AllocationCase) -> None:
    """It keeps at least as many weights of a layer as `least` says, as `--masks.floor` asks."""
    for shapes in _NETWORKS:
        available = {name: prod(shape) for name, shape in shapes.items()}
        for sparsity in _SPARSITIES:
            for floor in (1.0, 4.0, 0.05):
                least = allocation.floors(shapes, floor)
                if sum(least.values()) <= allocation.kept_total(shapes, sparsity):
                    case.is_sound(shapes, sparsity, available, least)
    for shapes, sparsity, available in _scarce():
        least = {name: min(1, count) for name, count in available.items()}
        if sum(least.values()) <= allocation.kept_total(shapes, sparsity):
            case.is_sound(shapes, sparsity, available, least)


def gives_the_same_again(case: AllocationCase) -> None:
    """The same arguments give the same numbers, whatever it was called with in between, and stay as they are."""
    shapes = _NETWORKS[0]
    arguments = (shapes, 0.8, {name: prod(shape) for name, shape in shapes.items()}, dict.fromkeys(shapes, 1))
    mine = copy.deepcopy(arguments)
    first = case.counts(*mine)
    need(mine == arguments, f"it changed its arguments to {_said(*mine)}")
    first = dict(first) if isinstance(first, Mapping) else first
    for other in _NETWORKS[1:]:
        case.counts(other, 0.5, {name: prod(shape) for name, shape in other.items()}, dict.fromkeys(other, 0))
    for _ in range(3):
        again = case.counts(*copy.deepcopy(arguments))
        need(again == first, f"with {_said(*arguments)} it returned {first}, then {again}")


@after("adds_up", "gives_the_same_again")
def hashes_decide_nothing(case: AllocationCase) -> None:
    """The numbers do not depend on how Python hashes names, which differs from process to process: of a set of names
    the order is sorted, and no seed is a hash(). Tried in three processes.
    """
    case.digest()
    need(
        not function_differs(case),
        "it gave other numbers in a process that hashes names otherwise; go through shapes or sorted(names) instead of "
        "a set, and do not use hash()",
    )


def _scarce() -> Iterator[tuple[dict[str, tuple[int, ...]], float, dict[str, int]]]:
    """Networks of which not all weights can be kept, and just as many as are."""
    for shapes in _NETWORKS:
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        total = sum(sizes.values())
        for number, scarce in enumerate(sizes):
            for share in (0.0, 0.1, 0.5):
                available = {name: ceil(share * n) if name == scarce else n for name, n in sizes.items()}
                for kept in sorted({sum(available.values()), sum(available.values()) // 2, number}):
                    yield shapes, 1.0 - kept / total, available


def _said(shapes: Any, sparsity: float, available: Any, least: Any) -> str:
    return f"shapes {shapes}, sparsity {sparsity:g}, available {available}, least {least}"


ALLOCATION_RULES = rules_of(globals())
