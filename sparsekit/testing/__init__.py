"""Contract tests for plugins, to be called from their own tests: `check_method(MyMethod)`, `check_merge(MyMerge)`."""

from __future__ import annotations

from sparsekit.api import MergeStrategy, PruningMethod

__all__ = ["ContractError", "check_merge", "check_method"]


class ContractError(AssertionError):
    """A plugin breaks the contract; the message says what it asks and what the class did."""


def check_method(cls: type[PruningMethod], /, **options: object) -> None:
    """Hold a pruning method against the contract; raises ContractError."""
    cls(**options)


def check_merge(cls: type[MergeStrategy], /, **options: object) -> None:
    """Hold a merge strategy against the contract; raises ContractError."""
    cls(**options)
