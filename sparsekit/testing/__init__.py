"""The contract kit: tests that a plugin's class keeps the contract of its kind.

Call `check_method(MyMethod)`, `check_merge(MyMerge)` or `check_task(MyTask)` from the plugin's own tests. They drive
the class through real runs of a tiny model, which takes some seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sparsekit._types import Tensor
from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.plugins.registry import Kind
from sparsekit.testing.rules import ContractError, Outcome, outcomes

__all__ = ["ContractError", "Outcome", "check_merge", "check_method", "check_rules", "check_task"]


def check_method(cls: type[PruningMethod], /, **options: Any) -> None:
    """Check a pruning method, made with `options`, against every rule; raises ContractError naming the broken ones."""
    _check("method", cls, options)


def check_merge(cls: type[MergeStrategy], /, **options: Any) -> None:
    """Check a merge strategy, made with `options`, against every rule; raises ContractError naming the broken ones."""
    _check("merge", cls, options)


def check_task(cls: type[Task], examples: tuple[Tensor, Tensor] | None = None, /, **options: Any) -> None:
    """Check a task, made with `options`, against every rule; raises ContractError naming the broken ones.

    Args:
        cls: The class.
        examples: Outputs and targets of some eight examples, where none of the kit's own suits the task.
        **options: The task's options.
    """
    from sparsekit.testing.task_case import TaskCase
    from sparsekit.testing.task_rules import TASK_RULES

    _refuse(cls, outcomes(TASK_RULES, TaskCase(cls, options, examples)))


def check_rules(kind: Kind, cls: type, /, **options: Any) -> Iterator[Outcome]:
    """Try one rule after the other on a class made with `options`, and yield the outcome of each."""
    if kind == "method":
        from sparsekit.testing.method_case import MethodCase
        from sparsekit.testing.method_rules import METHOD_RULES

        yield from outcomes(METHOD_RULES, MethodCase(cls, options))
    elif kind == "task":
        from sparsekit.testing.task_case import TaskCase
        from sparsekit.testing.task_rules import TASK_RULES

        yield from outcomes(TASK_RULES, TaskCase(cls, options))
    else:
        from sparsekit.testing.merge_case import MergeCase
        from sparsekit.testing.merge_rules import MERGE_RULES

        yield from outcomes(MERGE_RULES, MergeCase(cls, options))


def _check(kind: Kind, cls: type, options: dict[str, Any]) -> None:
    _refuse(cls, check_rules(kind, cls, **options))


def _refuse(cls: type, found: Iterable[Outcome]) -> None:
    broken = [outcome for outcome in found if outcome.state == "FAIL"]
    if broken:
        count = "a rule" if len(broken) == 1 else f"{len(broken)} rules"
        lines = [f"{cls.__name__} breaks {count} of the contract"]
        for outcome in broken:
            lines += ["", f"{outcome.rule}: {outcome.requirement}"]
            lines += [f"    {line}" for line in outcome.finding.splitlines()]
        raise ContractError("\n".join(lines)) from next((o.error for o in broken if o.error), None)
