"""The contract's rules for plugins, to be called from a plugin's own tests: `check_method(MyMethod)`, `check_merge(…)`.

They drive the class through the real scheduler, on a tiny model and small digits, in some seconds on the CPU. The rules
themselves are in `method_rules.METHOD_RULES` and `merge_rules.MERGE_RULES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparsekit.api import MergeStrategy, PruningMethod
from sparsekit.plugins.registry import Kind
from sparsekit.testing.rules import ContractError, Outcome, outcomes, raise_broken

__all__ = ["ContractError", "Outcome", "check_merge", "check_method", "check_rules"]


def check_method(cls: type[PruningMethod], /, **options: Any) -> None:
    """Hold a pruning method, made with `options`, against every rule; raises ContractError naming the broken ones."""
    raise_broken(cls.__name__, check_rules("method", cls, **options))


def check_merge(cls: type[MergeStrategy], /, **options: Any) -> None:
    """Hold a merge strategy, made with `options`, against every rule; raises ContractError naming the broken ones."""
    raise_broken(cls.__name__, check_rules("merge", cls, **options))


def check_rules(kind: Kind, cls: type, /, **options: Any) -> Iterator[Outcome]:
    """What becomes of each rule, one after the other."""
    if kind == "method":
        from sparsekit.testing.method_case import MethodCase
        from sparsekit.testing.method_rules import METHOD_RULES

        yield from outcomes(METHOD_RULES, MethodCase(cls, options))
    else:
        from sparsekit.testing.merge_case import MergeCase
        from sparsekit.testing.merge_rules import MERGE_RULES

        with MergeCase(cls, options) as case:
            yield from outcomes(MERGE_RULES, case)
