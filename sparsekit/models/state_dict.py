"""Other people's state dicts: which part of a file holds the weights, and under which names."""

from __future__ import annotations

import argparse
import datetime
import itertools
import pathlib
import pickle
import re
import types
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sparsekit.errors import UserError
from sparsekit.models import sparse_file
from sparsekit.models.reparametrized import Readers, dense_tensor, multiply_out

_TIMM_AVERAGED = ("state_dict_ema", "model_ema")
_AVERAGED = (*_TIMM_AVERAGED, "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")
_TIMM = ("state_dict", "model")
_TRAINED = (*_TIMM, "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
_KNOWN = tuple(dict.fromkeys((*_TIMM_AVERAGED, *_TIMM, *_AVERAGED, *_TRAINED)))
"""Names of a model's part: in timm's order those that timm knows, then moving averages, then the rest."""
_NO_MODEL = re.compile(
    r"optim|sched|scaler|loss|criterion|callback|metric|hyper_param|hparam|config|(^|_)(rng|args?|loops?|log|history)"
)
_WRAPPER = re.compile(r"(?:(?<=^)|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, DDP, FSDP and activation checkpointing put into names, at any depth."""
_DEEPEST = 8  # parts in one another


@dataclass(frozen=True)
class StateDict:
    """The plain tensors of a file, read on demand.

    Attributes:
        readers: For each name a function that reads the tensor to the CPU.
        masks: For each weight beside which a mask stood a function that reads the mask: bool, True keeps.
        notes: Lines for the user about what was chosen.
    """

    readers: Readers
    masks: Readers = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fitted(self, expected: Collection[str], where: str, one: bool = False) -> StateDict:
        """The same tensors under the names that a model expects, as far as a prefix tells them apart.

        What wrappers put into names is left out. Of several prefixes the one that fits most names is taken, of equal
        ones that of a moving average. BatchNorm's count of batches, which old files lack, is 0.

        Args:
            expected: The model's names.
            where: The option and the file, for messages.
            one: Whether the file is known to hold one model; where several prefixes fit, none is taken then.

        Raises:
            UserError: the file holds several models, and nothing says which is meant.
        """
        if self.readers.keys() == set(expected):
            return self
        names, wanted = without_wrappers(self.readers), without_wrappers(expected)
        prefix, notes = _prefix(names, wanted, "" if one else where), list(self.notes)
        found = {name.removeprefix(prefix): own for name, own in names.items() if name.startswith(prefix)}
        inside = {wanted.get(name, name): own for name, own in found.items()}
        if "n_averaged" not in expected:
            inside.pop("n_averaged", None)  # AveragedModel's own count
            names.pop("n_averaged", None)
        if outside := [own for name, own in names.items() if not name.startswith(prefix)]:
            more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
            notes.append(f"weights: {prefix}*; not taken: {outside[0]}{more}")
        readers = {name: self.readers[own] for name, own in inside.items()}
        for name in expected:
            if name.endswith(".num_batches_tracked") and f"{name.rpartition('.')[0]}.running_var" in readers:
                readers.setdefault(name, _no_batches)
        masks = {name: self.masks[own] for name, own in inside.items() if own in self.masks}
        return replace(self, readers=readers, masks=masks, notes=tuple(notes))


def open_state_dict(file: Path, where: str) -> StateDict:
    """Open a file of weights: safetensors, sparsekit's sparse format, or whatever `torch.save` wrote.

    Of a pickle only tensors and plain values are read; no code in it runs.

    Args:
        file: The file.
        where: The option and the file, for messages.

    Raises:
        UserError: the file holds something else than weights, or tensors that are no plain weights.
    """
    notes: tuple[str, ...] = ()
    if _looks_like_pickle(file):
        part, notes = _choose(_unpickle(file, where), where)
        raw: Readers = {name: partial(_mapped, name, tensor, where) for name, tensor in part.items()}
    else:
        with safe_open(str(file), framework="pt") as opened:
            names = sorted(opened.keys())
            is_sparse = sparse_file.is_sparse(opened.metadata())
        if is_sparse:
            loaded = sparse_file.load(file)
            raw = {name: partial(loaded.__getitem__, name) for name in loaded}
        else:
            raw = {name: partial(_stored, name, file, where) for name in names}
    return StateDict(*multiply_out(raw, where), notes)


def without_wrappers(names: Collection[str]) -> dict[str, str]:
    """The names without what wrappers put into them, each with its own name; as they are if two become one."""
    plain = {_WRAPPER.sub("", name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


# --- reading -----------------------------------------------------------------------------------------


def _looks_like_pickle(file: Path) -> bool:
    """Whether a file was written by `torch.save`: a zip archive, or a bare pickle before torch 1.6."""
    with file.open("rb") as opened:
        head = opened.read(4)
    return head[:2] == b"PK" or head[:1] == b"\x80"


def _unpickle(file: Path, where: str) -> object:
    """The content of a pickle of tensors and plain values.

    Raises:
        UserError: it holds an object of another class.
    """
    others = torch.serialization.get_safe_globals()  # leaving the block would take these away
    inert = [kind for kind in _inert() if kind not in others]
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(inert):
        try:
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:  # files from before torch 1.6 cannot be memory-mapped
                if "TorchScript" in str(error):
                    raise UserError(f"{where} is a TorchScript program; save model.state_dict()") from error
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = named[1] if named else "more than tensors"
            raise UserError(
                f"{where} is not a plain state dict: it holds {what}, and nothing but tensors and plain "
                "values is unpickled; save a state dict of plain tensors, or a safetensors file"
            ) from error


def _inert() -> list[Any]:
    """Classes beside weights that hold values and do nothing when they are made, for `safe_globals`."""
    paths = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
    paths |= {f"Pure{name}": kind for name, kind in paths.items()}
    named: list[Any] = [
        (kind, f"{module}.{name}") for name, kind in paths.items() for module in ("pathlib", "pathlib._local")
    ]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    for core in ("numpy.core", "numpy._core"):  # before and after numpy 2
        named += [(scalar, f"{core}.multiarray.scalar"), (array, f"{core}.multiarray._reconstruct")]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    plain = (argparse.Namespace, types.SimpleNamespace, np.ndarray, np.dtype)
    times = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
    return [*named, *plain, *dtypes, *times]


def _choose(found: object, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The part of a file that holds the model's weights, and lines for the user if there was a choice.

    Raises:
        UserError: no part does, or several do and nothing says which is meant.
    """
    path, left = list[str](), list[str]()
    while isinstance(found, Mapping) and len(path) < _DEEPEST and (parts := _models(found)):
        whole = max((_size(found[part]) for part in parts if part in _TRAINED), default=0)  # some average no buffers
        key = next((key for key in _KNOWN if key in parts and (key in _TRAINED or _size(found[key]) >= whole)), None)
        if key is None and len(parts) > 1:
            raise UserError(f"{where} holds several models: {', '.join(parts)}; save the state dict of one")
        key = key or parts[0]
        left += [".".join([*path, other]) for other in parts if other != key]
        path.append(key)
        found = found[key]
    notes: tuple[str, ...] = ()
    if left or set(path) - set(_TRAINED):
        average = "the moving average" if set(path) & set(_AVERAGED) else ""
        why = ", ".join(
            filter(None, [average, "as timm chooses" if left and set(path) & {*_TIMM_AVERAGED, *_TIMM} else ""])
        )
        why = f" ({why})" if why else ""
        notes = (f"weights: {'.'.join(path)}{why}" + (f"; not taken: {', '.join(left)}" if left else ""),)
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where} is not a state dict; save model.state_dict()")
    for name, value in found.items():
        if isinstance(name, str) and "_packed_params" in name:
            raise UserError(f"{where} is quantised ({name}); give the model from before it was quantised")
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where} is not a state dict: {name!r} is {type(value).__name__}; save model.state_dict()")
    return dict(found), notes


def _models(found: Mapping[Any, Any]) -> list[str]:
    """Keys of the parts that hold a model's tensors."""
    return [key for key, value in found.items() if isinstance(key, str) and _is_model(key, value, _DEEPEST)]


def _is_model(key: str, value: object, depth: int) -> bool:
    if not isinstance(value, Mapping) or (key not in _KNOWN and _NO_MODEL.search(key.lower())) or not depth:
        return False
    if any(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()):
        return True
    return any(isinstance(name, str) and _is_model(name, item, depth - 1) for name, item in value.items())


def _size(part: object, depth: int = _DEEPEST) -> int:
    """Number of tensors in a part and in the parts in it."""
    if not isinstance(part, Mapping) or not depth:
        return int(isinstance(part, Tensor))
    return sum(_size(item, depth - 1) for item in part.values())


def _mapped(name: str, tensor: Tensor, where: str) -> Tensor:
    """A copy of a tensor: one that is mapped to memory would keep the whole file there."""
    return dense_tensor(name, tensor.detach(), where).to("cpu", copy=True)


def _stored(name: str, file: Path, where: str) -> Tensor:
    """One tensor of a safetensors file."""
    with safe_open(str(file), framework="pt") as opened:  # an open file would keep pages in memory
        return dense_tensor(name, opened.get_tensor(name), where)


def _no_batches() -> Tensor:
    return torch.tensor(0)


# --- names -------------------------------------------------------------------------------------------


def _prefix(names: Collection[str], expected: Collection[str], where: str) -> str:
    """The prefix under which most of the expected names are found, if these are more than half; else the empty one.

    Several that fit are refused with the words of `where`; without any the empty one is taken.
    """
    fits = Counter(prefix for name in names for prefix, rest in _splits(name) if rest in expected)
    most = max(fits.values(), default=0)
    best = [prefix for prefix, count in fits.items() if count == most]
    if "" in best or 2 * most <= len(expected):
        return ""
    averaged = [prefix for prefix in best if "ema" in re.split(r"[._]", prefix)]
    if len(best) > 1 and len(averaged) != 1:
        if not where:
            return ""
        raise UserError(f"{where} holds several models: {', '.join(sorted(best))}; save the state dict of one")
    return (averaged if len(best) > 1 else best)[0]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """A name split before its first word, before its second, and so on."""
    starts = itertools.chain([0], (match.end() for match in re.finditer(r"\.", name)))
    return ((name[:start], name[start:]) for start in starts)
