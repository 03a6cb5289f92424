"""Random and mutated input: exit codes 0 and 2 only, Damaged and RunError only, and never other weights.

`make test` tries the same few examples always, `make fuzz` thousands of new ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_files import newest
from tiny import assert_equal, pruned, tiny_config

from sparsekit.api import Score
from sparsekit.cli import main
from sparsekit.config.options import FitConfig, describe, flatten
from sparsekit.errors import RunError
from sparsekit.merging.candidates import FileCandidate
from sparsekit.models.state import State
from sparsekit.pruning.masks import digest
from sparsekit.run import progress
from sparsekit.run.checkpoint import CheckpointStore
from sparsekit.run.progress import RunProgress, first_progress
from sparsekit.training.prepare import prepare
from sparsekit.training.replica import Training
from sparsekit.training.setup import Setup

# --- the config parser ------------------------------------------------------------------------------


def plan(*argv: str) -> int:
    """Run `sparsekit plan`; a bad end is one or two lines."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(["plan", *argv])
    assert code in (0, 2)
    if code == 2:
        assert err.getvalue().startswith("sparsekit: error: ")
        assert len(err.getvalue().splitlines()) <= 2
    return code


def config_file(text: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_bytes(text)
        return plan("--config", str(path))


PLAIN = flatten(describe(tiny_config()))
OPTIONS = sorted(PLAIN) + [item.name for item in fields(FitConfig) if is_dataclass(item.default_factory)]
NAMES = st.sampled_from(
    [*OPTIONS, "class_path", "init_args", "name", "config", "help", "print_config", "method.cycles"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["gmp", "imp", "uniform", "os.system", "sparsekit.cli.main.main", "1e400", ".nan", "2:4", "cpu", "-1"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=3)
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5) | VALUES


@given(DOCUMENTS)
def test_any_yaml_document_is_a_config_or_refused(document: Any) -> None:
    config_file(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200) | st.text(alphabet="[]{}&*!|>%@`:,-? \n'\"#a1<~", max_size=60).map(str.encode))
def test_any_bytes_are_a_config_or_refused(data: bytes) -> None:
    config_file(data)


@functools.cache
def valid() -> str:
    plain = describe(tiny_config())
    return yaml.safe_dump({**plain, "out": None})


@given(st.data())
def test_a_mutated_config_is_a_config_or_refused(data: st.DataObject) -> None:
    document = yaml.safe_load(valid())
    for _ in range(data.draw(st.integers(1, 3))):
        group = data.draw(st.sampled_from(sorted(document)))
        if isinstance(document[group], dict) and document[group] and data.draw(st.booleans()):
            document[group][data.draw(st.sampled_from(sorted(document[group])) | NAMES)] = data.draw(VALUES)
        else:
            document[data.draw(st.just(group) | NAMES)] = data.draw(VALUES)
    config_file(yaml.safe_dump(document).encode())


@given(st.data())
def test_a_config_with_bytes_changed_is_a_config_or_refused(data: st.DataObject) -> None:
    text = bytearray(valid().encode())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    config_file(bytes(text))


FLAGS = NAMES.map(lambda name: f"--{name}") | st.text(max_size=8)
WORDS = FLAGS | VALUES.map(str) | VALUES.map(lambda v: json.dumps(v, default=str))
PAIRS = st.tuples(FLAGS, WORDS).map(lambda pair: f"{pair[0]}={pair[1]}")


@given(st.lists(WORDS | PAIRS, max_size=6))
def test_any_arguments_are_taken_or_refused(argv: list[str]) -> None:
    plan(*argv)


# --- checkpoints ------------------------------------------------------------------------------------


@functools.cache
def ready() -> Setup:
    return prepare(tiny_config())


@functools.cache
def stored() -> tuple[dict[str, bytes], RunProgress]:
    """The files of one checkpoint in the middle of a replica, and the progress that it holds."""
    setup = ready()
    parent, stage = pruned(setup, first_progress(setup).parent, 1)
    training = Training(setup, parent, stage, setup.plan[stage.index].replicas[0], setup.method.learning_rate(stage))
    images, labels = next(iter(setup.data.train_batches(0, 1)))
    training.step(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        other = State(parent.tensors, parent.masks, parent.extra)
        candidate = FileCandidate.write(Path(folder, "segment-001-0.safetensors"), 0, other, Score(0.5, 1.0))
        at = RunProgress(1, 24, parent, 0.25, (0,), (candidate,), (), {1: training.snapshot()}, Score(0.5, 1.0))
        progress.save(store, at, {"metrics": 100, "seconds": 1.5, "ordered": None})
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, at


@contextlib.contextmanager
def as_folder(files: dict[str, bytes]) -> Iterator[CheckpointStore]:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        yield CheckpointStore(Path(folder))


def loaded(files: dict[str, bytes]) -> RunProgress | None:
    """The progress that a run would resume from; None if the checkpoint is refused. Other exceptions are failures."""
    setup, expected = ready(), stored()[1]
    with as_folder(files) as store:
        fresh = first_progress(setup).parent
        read = functools.partial(progress.restore, store, fresh, len(setup.plan))
        try:
            at = store.restored(lambda text: None, read)
        except RunError:
            return None
        assert at is not None
        assert_equal(dict(sorted(at.parent.tensors.items())), dict(sorted(expected.parent.tensors.items())))
        assert_equal(at.parent.masks, expected.parent.masks)
        for candidate in at.candidates:
            assert candidate.mask_digest == digest(at.parent.masks)
            for name in candidate.names():
                assert torch.equal(candidate.read(name), expected.parent.named()[name])
        for snapshot in at.snapshots.values():
            assert_equal(dict(sorted(snapshot.tensors.items())), dict(sorted(expected.snapshots[1].tensors.items())))
        return at


def manifest(body: object) -> bytes:
    """A manifest with the checksum that belongs to it."""
    text = json.dumps(body).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def test_the_checkpoint_itself_is_good() -> None:
    at = loaded(stored()[0])
    assert at is not None
    assert (at.segment, at.step, at.finished, at.snapshots[1].done) == (1, 24, (0,), 1)


FILES = st.sampled_from(
    ["000001.json", "000001-parent.safetensors", "000001-replica-1.safetensors", "segment-001-0.safetensors"]
)


@given(FILES, st.data())
def test_any_damage_is_refused(name: str, data: st.DataObject) -> None:
    files = dict(stored()[0])
    good = files[name]
    place = data.draw(st.integers(0, len(good) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "random", "insert", "remove"]))
    if damage == "cut":
        files[name] = good[:place]
    elif damage == "flip":
        files[name] = good[:place] + bytes([good[place] ^ 1 << data.draw(st.integers(0, 7))]) + good[place + 1 :]
    elif damage == "random":
        files[name] = data.draw(st.binary(max_size=100))
    elif damage == "insert":
        files[name] = good[:place] + data.draw(st.binary(min_size=1, max_size=9)) + good[place:]
    else:
        del files[name]
    if name == "000001.json" and damage == "remove":
        with as_folder(files) as store:
            assert newest(store, pytest.fail) is None
        return
    assert loaded(files) is None


KEYS = ["format", "segment", "step", "progress", "target", "change", "finished", "candidates", "tested", "underway"]
KEYS += ["test", "metrics", "seconds", "ordered", "files"]


@given(st.data())
def test_a_mutated_manifest_with_a_right_checksum_is_refused_or_loads_the_weights_that_were_stored(
    data: st.DataObject,
) -> None:
    files = dict(stored()[0])
    body = json.loads(files["000001.json"].partition(b"\n")[2])
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(KEYS))
        what = data.draw(st.sampled_from(["value", "inner", "remove", "swap"]))
        inner = body.get(key)
        if what == "remove":
            body.pop(key, None)
        elif what == "inner" and isinstance(inner, list) and inner:
            inner[data.draw(st.integers(0, len(inner) - 1))] = data.draw(VALUES)
        elif what == "inner" and isinstance(inner, dict) and inner:
            chosen = data.draw(st.sampled_from(sorted(inner)))
            if isinstance(inner[chosen], dict) and inner[chosen] and data.draw(st.booleans()):
                inner[chosen][data.draw(st.sampled_from(["name", "size", "sha256", "more"]))] = data.draw(
                    VALUES | st.sampled_from(["../000001.json", "/etc/passwd", "000001.json", ".", ""])
                )
            else:
                inner[chosen] = data.draw(VALUES)
        elif what == "swap" and isinstance(body.get("files"), dict) and len(body["files"]) > 1:
            one, two = data.draw(st.permutations(sorted(body["files"])))[:2]
            body["files"][one], body["files"][two] = body["files"][two], body["files"][one]
        else:
            body[key] = data.draw(VALUES)
    files["000001.json"] = manifest(body)
    loaded(files)


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_text_with_a_right_checksum_is_no_manifest(text: bytes) -> None:
    files = dict(stored()[0])
    files["000001.json"] = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
    assert loaded(files) is None
