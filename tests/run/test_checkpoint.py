"""Checkpoints: whole or not at all, checksummed, the last two kept, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import threading
import weakref
from pathlib import Path

import pytest
import torch
import xxhash
from run_files import newest

from sparsekit.errors import RunError
from sparsekit.run.checkpoint import CheckpointStore, Damaged, StoredFile


def filled(folder: Path, count: int = 3) -> CheckpointStore:
    store = CheckpointStore(folder)
    for number in range(count):
        tensors = {"weight": torch.full((64, 3), float(number)), "step": torch.tensor(number)}
        store.commit({"segment": number}, {"parent": store.store("parent", tensors)})
    return store


def test_the_last_two_are_kept_with_their_files(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000004-parent.safetensors",
        "000004.json",
        "000005-parent.safetensors",
        "000005.json",
    ]


def test_the_one_before_a_replica_stays_with_its_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for underway in ([], [1], [1], [1]):
        store.commit({"underway": underway}, {"parent": store.store("parent", {"w": torch.ones(3)})})
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["000001.json", "000004.json"]
    store.commit({"underway": []}, {})
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["000001.json", "000005.json"]


def test_one_that_stands_alone_is_there_twice_and_nothing_older(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    store.commit({"segment": 2}, {"parent": store.store("parent", {"w": torch.ones(3)})}, alone=True)
    names = ["000003-parent.safetensors", "000003.json", "000004.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "000003.json").read_bytes() == (tmp_path / "000004.json").read_bytes()
    assert store.number == 4


def test_a_file_that_no_checkpoint_has_named_yet_stays(tmp_path: Path) -> None:
    """It may be written while the checkpoint before it removes old ones."""
    store = filled(tmp_path, 1)
    file = store.put("optimizer", {"w": torch.ones(3)})
    (tmp_path / (file.path.name + ".part")).touch()
    store.commit({"segment": 1}, {})
    store.commit({"segment": 2}, {})
    assert file.path.exists()
    assert (tmp_path / (file.path.name + ".part")).exists()
    store.commit({"segment": 3}, {"optimizer": store.described(file.path)})
    store.commit({"segment": 4}, {})
    store.commit({"segment": 5}, {})
    assert not file.path.exists()


def test_a_file_that_another_rank_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / ".tmpAbC123").touch()  # as safetensors calls a file before it is whole
    store = filled(tmp_path, 3)
    assert (tmp_path / ".tmpAbC123").exists()
    store.clear()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_good_one_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path)
    store, said = CheckpointStore(tmp_path), []
    found = newest(store, said.append)
    assert found is not None
    body, files = found
    assert body["segment"] == 2
    assert torch.equal(store.load(files["parent"])["weight"], torch.full((64, 3), 2.0))
    assert said == []
    store.commit({"segment": 3}, files)
    assert (tmp_path / "000004.json").exists()


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Format 1 named its files with their SHA-256."""
    filled(tmp_path, 1)
    body = json.loads((tmp_path / "000001.json").read_bytes().partition(b"\n")[2])
    file = body["files"]["parent"]
    assert file.pop("xxh128") == xxhash.xxh128_hexdigest((tmp_path / file["name"]).read_bytes())
    right = hashlib.sha256((tmp_path / file["name"]).read_bytes()).hexdigest()
    for checksum in (right, right[::-1]):
        file["sha256"] = checksum
        text = json.dumps(body | {"format": 1}).encode()
        (tmp_path / "000001.json").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        if checksum == right:
            found = newest(CheckpointStore(tmp_path), pytest.fail)
            assert found is not None
            assert found[0]["segment"] == 0
        else:
            with pytest.raises(RunError, match="damaged"):
                newest(CheckpointStore(tmp_path), lambda text: None)


def test_writing_goes_on_beside_in_its_order_until_it_is_waited_for(tmp_path: Path) -> None:
    store, begun, go, order = CheckpointStore(tmp_path), threading.Event(), threading.Event(), []
    store.beside(lambda: (begun.set(), go.wait(30), order.append("first")))
    store.beside(lambda: order.append("second"))
    assert begun.wait(30)
    assert order == []  # this thread went on
    go.set()
    store.wait()
    assert order == ["first", "second"]


def test_what_went_wrong_beside_is_raised_by_the_wait(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def full() -> None:
        raise OSError(28, "No space left on device", "somewhere")

    store.beside(full)
    with pytest.raises(OSError, match="No space left"):
        store.wait()
    store.wait()  # once


def test_no_checkpoint_is_no_damage(tmp_path: Path) -> None:
    assert newest(CheckpointStore(tmp_path / "none"), pytest.fail) is None


def test_every_flipped_byte_is_detected(tmp_path: Path) -> None:
    """200 places over the manifest and the tensors: the one before is used, and the damage is named."""
    filled(tmp_path)
    chance = random.Random(0)
    for path in (tmp_path / "000003.json", tmp_path / "000003-parent.safetensors"):
        good = path.read_bytes()
        for place in chance.sample(range(len(good)), 100):
            bad = bytearray(good)
            bad[place] ^= 1 << chance.randrange(8)
            path.write_bytes(bytes(bad))
            said: list[str] = []
            found = newest(CheckpointStore(tmp_path), said.append)
            assert found is not None
            assert found[0]["segment"] == 1, f"{path.name}, byte {place}"
            assert len(said) == 1
            assert "000003.json is damaged" in said[0]
        path.write_bytes(good)


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_truncated_files_are_detected(tmp_path: Path, cut: int) -> None:
    filled(tmp_path)
    path = tmp_path / "000003-parent.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    found = newest(CheckpointStore(tmp_path), lambda text: None)
    assert found is not None
    assert found[0]["segment"] == 1


def test_all_damaged_says_so_and_touches_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"segment", b"sagment"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match=r"all checkpoints in .* are damaged; nothing was changed"):
        newest(CheckpointStore(tmp_path), lambda text: None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Payload:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch PAYLOAD_RAN",)


def test_a_pickle_in_a_tensor_files_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.commit({"segment": 0}, {"parent": store.store("parent", {"w": torch.ones(2)})})
    path = next((tmp_path / "checkpoints").glob("*.safetensors"))
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(RunError, match="damaged"):
        newest(CheckpointStore(tmp_path / "checkpoints"), lambda text: None)
    assert not (tmp_path / "PAYLOAD_RAN").exists()


def test_a_cut_off_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 1)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.store("parent", {"w": torch.ones(2)})
    monkeypatch.undo()
    found = newest(CheckpointStore(tmp_path), pytest.fail)
    assert found is not None
    assert found[0]["segment"] == 0


def test_damage_names_the_file(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    (tmp_path / "000001-parent.safetensors").unlink()
    with pytest.raises(Damaged, match=r"000001-parent\.safetensors is missing"):
        store.open(tmp_path / "000001.json")


def test_what_was_stored_once_is_let_go_when_no_checkpoint_needs_it(tmp_path: Path) -> None:
    class Owner:
        """Something that can be watched."""

    store, parent, replica = CheckpointStore(tmp_path), Owner(), Owner()
    watched = weakref.ref(replica)

    def files(*owners: tuple[str, object]) -> dict[str, StoredFile]:
        return {stem: store.store_once(stem, owner, lambda: {"w": torch.ones(3)}) for stem, owner in owners}

    first = files(("parent", parent), ("replica-0", replica))
    store.commit({}, first)
    second = files(("parent", parent))
    assert second["parent"] == first["parent"]
    store.commit({}, second)
    del replica
    assert watched() is None
