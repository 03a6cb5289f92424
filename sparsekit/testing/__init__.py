"""The contract kit: tests that a plugin's class or function keeps the contract of its kind, and a run for your own.

Call `check_method(MyMethod)`, `check_merge(MyMerge)`, `check_task(MyTask)`, `check_dataset(my_data)`,
`check_allocation(mine)`, `check_schedule(mine)` or `check_format(FORMAT)` from the plugin's own tests. The first three
drive the class through real runs of a tiny model, which takes some seconds.
`run(MyMethod(), "uniform").segments[1].masks` is for what you want to know of a run yourself,
`pruning_step(weights, plan)` for masks worked by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsekit._types import Tensor
from sparsekit.api import MergeStrategy, PruningMethod, Task
from sparsekit.data.examples import Data
from sparsekit.plugins.registry import Kind
from sparsekit.testing.by_hand import pruning_step
from sparsekit.testing.rules import ContractError, Outcome, outcomes
from sparsekit.testing.trial import Trial, TrialSegment, run

if TYPE_CHECKING:
    from sparsekit.exporting.formats import Format

__all__ = [
    "ContractError",
    "Outcome",
    "Trial",
    "TrialSegment",
    "check_allocation",
    "check_dataset",
    "check_format",
    "check_merge",
    "check_method",
    "check_rules",
    "check_schedule",
    "check_task",
    "pruning_step",
    "run",
]


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


def check_dataset(function: Callable[..., Data], /, **options: Any) -> None:
    """Check a data set's function, called with `options`, against every rule; raises ContractError as the others do."""
    _check("dataset", function, options)


def check_allocation(function: Callable[..., Mapping[str, int]], /) -> None:
    """Check an allocation's function against every rule; raises ContractError naming the broken ones."""
    _check("allocation", function, {})


def check_schedule(function: Callable[[float, float], float], /) -> None:
    """Check a schedule's function against every rule; raises ContractError naming the broken ones."""
    _check("schedule", function, {})


def check_format(record: Format, /) -> None:
    """Check an export format against every rule; raises ContractError naming the broken ones."""
    _check("format", record, {})


def check_rules(kind: Kind, plugin: Any, /, **options: Any) -> Iterator[Outcome]:
    """Try one rule after the other on a class or function with these options, and yield the outcome of each."""
    if kind == "method":
        from sparsekit.testing.method_case import MethodCase
        from sparsekit.testing.method_rules import METHOD_RULES

        yield from outcomes(METHOD_RULES, MethodCase(plugin, options))
    elif kind == "task":
        from sparsekit.testing.task_case import TaskCase
        from sparsekit.testing.task_rules import TASK_RULES

        yield from outcomes(TASK_RULES, TaskCase(plugin, options))
    elif kind == "dataset":
        from sparsekit.testing.data_rules import DATA_RULES, DataCase

        yield from outcomes(DATA_RULES, DataCase(plugin, options))
    elif kind == "allocation":
        from sparsekit.testing.allocation_rules import ALLOCATION_RULES, AllocationCase

        yield from outcomes(ALLOCATION_RULES, AllocationCase(plugin))
    elif kind == "schedule":
        from sparsekit.testing.schedule_rules import SCHEDULE_RULES, ScheduleCase

        yield from outcomes(SCHEDULE_RULES, ScheduleCase(plugin))
    elif kind == "format":
        from sparsekit.testing.format_rules import FORMAT_RULES, FormatCase

        yield from outcomes(FORMAT_RULES, FormatCase(plugin))
    else:
        from sparsekit.testing.merge_case import MergeCase
        from sparsekit.testing.merge_rules import MERGE_RULES

        yield from outcomes(MERGE_RULES, MergeCase(plugin, options))


def _check(kind: Kind, plugin: Any, options: dict[str, Any]) -> None:
    _refuse(plugin, check_rules(kind, plugin, **options))


def _refuse(plugin: Any, found: Iterable[Outcome]) -> None:
    broken = [outcome for outcome in found if outcome.state == "FAIL"]
    if broken:
        count = "a rule" if len(broken) == 1 else f"{len(broken)} rules"
        lines = [f"{getattr(plugin, '__name__', type(plugin).__name__)} breaks {count} of the contract"]
        for outcome in broken:
            lines += ["", f"{outcome.rule}: {outcome.requirement}"]
            lines += [f"    {line}" for line in outcome.finding.splitlines()]
        raise ContractError("\n".join(lines)) from next((o.error for o in broken if o.error), None)
