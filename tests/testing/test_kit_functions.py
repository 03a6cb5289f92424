"""Every rule for allocations, schedules and formats catches the fault that it is there for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_functions import by_set, deaf, eager, moody, narrow
from plugin_classes import tried

from sparsekit import ExportModel, Format, Loaded, schedules
from sparsekit.errors import UserError
from sparsekit.exporting import sparse, timm_directory
from sparsekit.pruning.allocation import erk, uniform
from sparsekit.testing import ContractError, check_allocation, check_format, check_schedule
from sparsekit.testing.allocation_rules import ALLOCATION_RULES, AllocationCase
from sparsekit.testing.format_rules import FORMAT_RULES, FormatCase, export_model
from sparsekit.testing.schedule_rules import SCHEDULE_RULES, ScheduleCase

Function = Callable[..., Any]


def test_the_built_in_ones_keep_the_contract() -> None:
    for allocation in (uniform, erk):
        check_allocation(allocation)
    for schedule in (schedules.cosine, schedules.linear, schedules.constant):
        check_schedule(schedule)
    for record in (timm_directory.FORMAT, sparse.FORMAT):
        check_format(record)


def broken(rules: Sequence[Function], case: Any) -> list[str]:
    return [rule.__name__ for rule in rules if tried(rules, rule.__name__, case).state == "FAIL"]


# --- allocations --------------------------------------------------------------------------------------


def changed(change: Function) -> Function:
    """`uniform`, with its numbers changed."""

    def allocation(shapes: Any, sparsity: float, available: Any, least: Any) -> Any:
        """Broken."""
        return change(uniform(shapes, sparsity, available, least), available, least)

    return allocation


def one_more(found: dict[str, int], available: Any, least: Any) -> Any:
    name = next((name for name in found if found[name] < available[name]), "")
    return {**found, name: found[name] + 1} if name else found


def moved(found: dict[str, int], available: Any, least: Any) -> Any:
    """All weights that can be had from the first layers, whatever the floor."""
    left, kept = sum(found.values()), {}
    for name in found:
        kept[name] = min(left, available[name])
        left -= kept[name]
    return kept


@pytest.mark.parametrize(
    ("function", "rule", "words"),
    [
        (changed(one_more), "adds_up", "weights in all at a sparsity of"),
        (changed(lambda found, *_: None), "adds_up", "returned NoneType"),
        (changed(lambda found, *_: {name: float(n) for name, n in found.items()}), "adds_up", "give a whole number"),
        (changed(lambda found, *_: dict(list(found.items())[1:])), "adds_up", "leaves out"),
        (changed(lambda found, *_: {**found, "more": 0}), "adds_up", "names more"),
        (changed(lambda found, *_: 1 // 0), "adds_up", "raised ZeroDivisionError"),
        (deaf, "keeps_at_most_what_is_available", "(available)"),
        (changed(moved), "keeps_what_is_asked_for", "(least)"),
        (eager, "gives_the_same_again", "changed its arguments"),
        (moody, "gives_the_same_again", "then"),
        (by_set, "hashes_decide_nothing", "sorted(names)"),
        (narrow, "takes_four_arguments", "(shapes, sparsity, available, least)"),
        (
            lambda shapes, sparsity, available, least: uniform(shapes, sparsity, available, least),
            "describes_itself",
            "",
        ),
    ],
)
def test_every_rule_for_allocations_catches_its_fault(function: Function, rule: str, words: str) -> None:
    outcome = tried(ALLOCATION_RULES, rule, AllocationCase(function))
    assert outcome.state == "FAIL"
    assert words in outcome.finding
    with pytest.raises(ContractError, match=rule):
        check_allocation(function)


def test_a_fault_is_told_once() -> None:
    assert broken(ALLOCATION_RULES, AllocationCase(narrow)) == ["takes_four_arguments"]
    assert broken(ALLOCATION_RULES, AllocationCase(deaf)) == [
        "keeps_at_most_what_is_available",
        "keeps_what_is_asked_for",
    ]


# --- schedules ----------------------------------------------------------------------------------------

CALLS: list[float] = []


def counted(done: float, low: float) -> float:
    """Depends on how often it was called."""
    CALLS.append(done)
    return schedules.linear(done, low) * (1.0 if len(CALLS) % 7 else 0.999)


def documented(function: Function) -> Function:
    function.__doc__ = "Broken."
    return function


@pytest.mark.parametrize(
    ("function", "rule", "words"),
    [
        (documented(lambda done, low: 1.0 - 2.0 * done), "stays_between_0_and_1", "is -"),
        (documented(lambda done, low: 1.0 + done * (1.0 - done)), "stays_between_0_and_1", "is 1."),
        (documented(lambda done, low: float("nan")), "stays_between_0_and_1", "nan"),
        (documented(lambda done, low: "1"), "stays_between_0_and_1", "give a float"),
        (documented(lambda done, low: 1.0 - 0.0 / (1.0 - done)), "stays_between_0_and_1", "raised ZeroDivisionError"),
        (documented(lambda done, low: 0.5), "goes_from_1_to_low", "done=0 with low=0 it is 0.5"),
        (documented(lambda done, low: 1.0 - 0.5 * done), "goes_from_1_to_low", "done=1 with low=0 it is 0.5"),
        (counted, "gives_the_same_again", "then"),
        (documented(lambda done: 1.0), "takes_two_arguments", "(done, low)"),
        (lambda done, low: schedules.linear(done, low), "describes_itself", "no docstring"),
    ],
)
def test_every_rule_for_schedules_catches_its_fault(function: Function, rule: str, words: str) -> None:
    CALLS.clear()
    outcome = tried(SCHEDULE_RULES, rule, ScheduleCase(function))
    assert outcome.state == "FAIL"
    assert words in outcome.finding
    with pytest.raises(ContractError, match=rule):
        check_schedule(function)


# --- formats ------------------------------------------------------------------------------------------

SOUND = sparse.FORMAT
KEPT: dict[str, Any] = {}


def beside(model: ExportModel, out: Path) -> None:
    SOUND.write(model, out)
    (out.parent / "notes.txt").touch()


def rounding(model: ExportModel, out: Path) -> None:
    half = replace(model, model=_copy(model, lambda tensor: tensor.half().float()))
    SOUND.write(half, out)


def shifting(model: ExportModel, out: Path) -> None:
    SOUND.write(model, out)
    with torch.no_grad():
        next(model.model.parameters()).add_(1.0)


def keeping(model: ExportModel, out: Path) -> None:
    SOUND.write(model, out)
    KEPT["last"] = _copy(model, lambda tensor: tensor)


def _copy(model: ExportModel, change: Function) -> Any:
    import copy

    network = copy.deepcopy(model.model)
    network.load_state_dict({name: change(tensor.clone()) for name, tensor in network.state_dict().items()})
    return network


def flat(out: Path, model: ExportModel) -> Loaded:
    loaded = SOUND.load(out, model)
    return replace(loaded, predict=lambda images: loaded.predict(images)[:, :1])


def borrowing(integers: bool) -> Function:
    """Floating-point or integer buffers are taken from the model in memory, the rest from the file."""

    def load(out: Path, model: ExportModel) -> Loaded:
        kept = {n: b for n, b in model.model.named_buffers() if b.is_floating_point() is not integers}
        network = _copy(model, lambda tensor: tensor)
        network.load_state_dict({**SOUND.load(out, model).tensors, **kept})
        return Loaded.from_module(network)

    return load


FORMATS: list[tuple[Any, str, str]] = [
    ({"write": SOUND.write}, "is_a_format", "it is dict"),
    (replace(SOUND, tolerance=2.0), "is_a_format", "tolerance is 2.0"),
    (replace(SOUND, write=lambda model, out: None), "writes_where_it_is_told", "left nothing"),
    (replace(SOUND, write=beside), "writes_where_it_is_told", "notes.txt"),
    (replace(SOUND, write=lambda model: None), "writes_where_it_is_told", "write() raised TypeError"),
    (replace(SOUND, write=rounding), "comes_back_as_it_was", "differs from the original"),
    (replace(SOUND, load=flat), "comes_back_as_it_was", "shape (1, 1), not (1, 3)"),
    (replace(SOUND, load=lambda out, model: model), "comes_back_as_it_was", "load() returned ExportModel"),
    (replace(SOUND, load=lambda out, model: Loaded.from_module(model.model)), "reads_what_was_written", "differs"),
    (replace(SOUND, load=borrowing(integers=False)), "reads_what_was_written", "load() returned some of its values: "),
    (replace(SOUND, load=borrowing(integers=True)), "reads_what_was_written", "num_batches_tracked"),
    (
        replace(SOUND, write=keeping, load=lambda out, model: Loaded.from_module(KEPT["last"])),
        "two_exports_differ",
        "differs",
    ),
    (replace(SOUND, write=shifting), "leaves_the_model_alone", "changed"),
]


@pytest.mark.parametrize(("record", "rule", "words"), FORMATS)
def test_every_rule_for_formats_catches_its_fault(record: Any, rule: str, words: str) -> None:
    if rule == "leaves_the_model_alone":  # what is written stays as it was, and so does what it is compared with
        first = export_model(0)
        record = replace(record, reference=lambda model: Loaded.from_module(first.model))
    outcome = tried(FORMAT_RULES, rule, FormatCase(record))
    assert outcome.state == "FAIL", outcome
    assert words in outcome.finding
    with pytest.raises(ContractError, match=rule):
        check_format(record)


def test_the_kits_models_have_no_tensor_in_common_and_tell_images_apart() -> None:
    one, other = export_model(0), export_model(1)
    tensors = other.model.state_dict()
    assert not [name for name, tensor in one.model.state_dict().items() if torch.equal(tensor, tensors[name])]
    with torch.no_grad():
        logits = one.model(one.images)
        one.model.load_state_dict(dict(other.model.named_buffers()), strict=False)
        moved = one.model(one.images)
    assert (logits[1:] - logits[0]).abs().amax(1).min() > 1e-3  # the tolerance is 1e-4
    assert (moved - logits).abs().max() > 0.01


def test_a_format_that_refuses_the_kits_model_is_not_tried() -> None:
    def refuse(model: ExportModel) -> None:
        raise UserError("--format mine needs a CUDA device")

    record = Format(SOUND.write, SOUND.load, check=refuse)
    outcome = tried(FORMAT_RULES, "comes_back_as_it_was", FormatCase(record))
    assert (outcome.state, "needs a CUDA device" in outcome.finding) == ("skipped", True)


def test_every_rule_has_a_fault_here() -> None:
    assert {rule for _, rule, _ in FORMATS} == {rule.__name__ for rule in FORMAT_RULES}
