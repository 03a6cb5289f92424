"""The rules for a data set's function, tried on what it returns for given options."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsekit.config.data_sets import SHARED
from sparsekit.data.examples import Data
from sparsekit.errors import UserError
from sparsekit.plugins.contract import function_faults
from sparsekit.plugins.signatures import NO_OPTIONS
from sparsekit.testing.hashing import function_differs
from sparsekit.testing.rules import Broken, Skipped, after, describe, need, rules_of


@dataclass(frozen=True)
class DataCase:
    """A data set's function, and the arguments that it is called with, `root` and `name` among them."""

    function: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def made(self) -> Data:
        """What the function returns.

        Raises:
            Skipped: it needs arguments that were not given.
            Broken: it raises, or returns something else.
        """
        parameters = inspect.signature(self.function).parameters.values()
        given = {"root": None, **self.options}
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
        if missing:
            raise Skipped(f"it needs {', '.join(missing)}; sparsekit.testing.check_dataset takes them")
        names = {p.name for p in parameters}
        try:
            found = self.function(**{name: value for name, value in given.items() if name in names})
        except Exception as error:
            if isinstance(error, UserError) and "root" not in self.options:
                raise Skipped(f"without a folder it says: {error}") from error
            raise Broken(f"with {given} it raised {describe(error)}") from error
        found = Data(*found) if isinstance(found, (tuple, list)) and len(found) in (2, 3) else found
        need(isinstance(found, Data), f"it returned {type(found).__name__}")
        data: Data = found
        return data

    def digest(self) -> str:
        """A digest of the tensors, the number of other examples, and the classes' names."""
        import torch

        data = self.made()
        found = hashlib.sha256(repr(tuple(data.class_names)).encode())
        for examples in (data.train, data.test, data.held_out):
            if isinstance(examples, (tuple, list)):
                for part in map(torch.as_tensor, examples):
                    found.update(repr((part.dtype, part.shape)).encode())
                    found.update(part.contiguous().flatten().view(torch.uint8).numpy().tobytes())
            elif examples is not None:
                found.update(str(len(examples)).encode())  # type: ignore[arg-type]
        return found.hexdigest()


def describes_itself(case: DataCase) -> None:
    """The first line of the docstring says what `sparsekit plugins list` shows."""
    need(bool((case.function.__doc__ or "").strip()), "it has no docstring")


def names_its_options(case: DataCase) -> None:
    """Every option has a name of its own and a type; `root` and `name` are no options."""
    for fault in function_faults(case.function, SHARED):
        raise Broken(f"{case.function.__name__} {fault}")
    untyped = [name for name in NO_OPTIONS if (p := inspect.signature(case.function).parameters.get(name)) and
               p.annotation is p.empty]  # fmt: skip
    need(not untyped, f"{', '.join(untyped)} has no type")


def returns_examples(case: DataCase) -> None:
    """It returns a `sparsekit.Data`: map-style data sets or pairs of tensors, each example an input and a target.
    Inputs are finite; tensors are looked through.
    """
    import torch

    from sparsekit.data.batches import not_finite

    data = case.made()
    for split in ("train", "test", "held_out"):
        examples: Any = getattr(data, split)
        if split == "held_out" and examples is None:
            continue
        if isinstance(examples, (tuple, list)):
            need(len(examples) == 2, f"{split} has {len(examples)} parts, not inputs and targets")
            sizes = [len(part) for part in examples]
            need(sizes[0] == sizes[1] > 0, f"{split} has {sizes[0]} inputs and {sizes[1]} targets")
            odd = not_finite(torch.as_tensor(examples[0]))
            need(not odd, f"{split}: the input of example {(odd or [0])[0]} is not finite; correct it, or leave it out")
            continue
        need(hasattr(examples, "__len__") and hasattr(examples, "__getitem__"), f"{split} has no len or no [index]")
        need(len(examples) > 0, f"{split} is empty")
        first = examples[0]
        need(isinstance(first, (tuple, list)) and len(first) == 2, f"{split}[0] is {type(first).__name__}, no pair")


def returns_the_same_again(case: DataCase) -> None:
    """A second call returns the same examples: a run that is resumed reads them anew. Tensors are compared whole; of
    data sets that read or draw their examples the number is.
    """
    import torch

    from sparsekit.testing.compare import same_bits

    first, again = case.made(), case.made()
    for split in ("train", "test", "held_out"):
        one, other = getattr(first, split), getattr(again, split)
        if one is None and other is None:
            continue
        pair = isinstance(one, (tuple, list)) and isinstance(other, (tuple, list))
        sizes = [len(each[1] if pair else each) for each in (one, other)]
        need(sizes[0] == sizes[1], f"{split} has {sizes[0]} examples, and {sizes[1]} at a second call")
        parts = zip(one, other, strict=True) if pair else ()
        same = all(same_bits(torch.as_tensor(a), torch.as_tensor(b)) for a, b in parts)  # NaN is a target not known
        need(same, f"{split} has other values at a second call; draw from a generator that you seed")


@after("returns_examples", "returns_the_same_again")
def hashes_decide_nothing(case: DataCase) -> None:
    """Examples and class names do not depend on how Python hashes names, which differs from process to process: of a
    set of names the order is sorted, and no seed is a hash(). Tensors are compared whole, in three processes.
    """
    case.made()
    need(
        not function_differs(case, case.options),
        "it returned other examples or class_names in a process that hashes names otherwise; number sorted(names) "
        "instead of a set, and do not use hash()",
    )


DATA_RULES = rules_of(globals())
