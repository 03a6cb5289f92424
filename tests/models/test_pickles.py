"""Pickles with a payload, offered wherever sparsekit reads a file: refused in a line, and the payload does not run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import CIFAR, IDX
from resuming import QUIET, TINY, fit, strike

from sparsekit.cli.main import main
from sparsekit.errors import RunError
from sparsekit.files import load_tensors

Capture = pytest.CaptureFixture[str]


class Payload:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("RAN",)


def plain(protocol: int) -> Callable[[], bytes]:
    return lambda: pickle.dumps(Payload(), protocol)


def saved(legacy: bool) -> Callable[[], bytes]:
    def make() -> bytes:
        file = io.BytesIO()
        torch.save({"state_dict": Payload()}, file, _use_new_zipfile_serialization=not legacy)
        return file.getvalue()

    return make


def in_a_header() -> bytes:
    """A safetensors file whose header is a pickle."""
    data = pickle.dumps(Payload())
    return struct.pack("<Q", len(data)) + data


KINDS: dict[str, Callable[[], bytes]] = {
    "protocol 0": plain(0),
    "protocol 2": plain(2),
    "protocol 5": plain(5),
    "torch.save": saved(legacy=False),
    "torch.save, legacy": saved(legacy=True),
    "safetensors header": in_a_header,
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def payload(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(tmp_path)
    return bytes(request.param())


def test_the_payloads_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the tests below would show nothing."""
    for number, name in enumerate(KINDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        data = KINDS[name]()
        if name.startswith("torch"):
            torch.load(io.BytesIO(data), weights_only=False)
        else:
            pickle.loads(data[8:] if "header" in name else data)
        assert (folder / "RAN").is_dir(), name


def refused(capsys: Capture, code: int, *arguments: str) -> str:
    """Run `fit`, which must end with a line and without the payload's folder; returns the line."""
    capsys.readouterr()
    assert main(["fit", *TINY, *QUIET, *arguments]) == code
    _out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert not Path("RAN").exists()
    return err


@pytest.mark.slow
def test_as_a_checkpoints_manifest_or_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """With checksums that are right, as an attacker would have them."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        strike(patch, 42)
        assert fit(tmp_path / "run") == 143
    folder = tmp_path / "run" / "checkpoints"
    tensors = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    manifests = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    for make in KINDS.values():
        data = make()
        for name in manifests:
            (folder / name).write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        assert "are damaged" in refused(capsys, 1, "--out", str(tmp_path / "run"), "--resume")
        for name in tensors:
            (folder / name).write_bytes(data)
        for name, manifest in manifests.items():
            body = json.loads(manifest.partition(b"\n")[2])
            for entry in body["files"].values():
                entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            text = json.dumps(body).encode()
            (folder / name).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        error = refused(capsys, 1, "--out", str(tmp_path / "run"), "--resume")
        assert "all checkpoints" in error
        assert "are damaged" in error
    for name, data in (tensors | manifests).items():
        (folder / name).write_bytes(data)
    assert fit(tmp_path / "run", "--resume") == 0


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt", "config.json"])
def test_as_a_model(payload: bytes, name: str, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    (folder / name).write_bytes(payload)
    pretrained = () if name == "config.json" else ("--model.pretrained", "true")
    error = refused(capsys, 2, "--model.name", f"local-dir:{folder}", "--model.kwargs", "{}", *pretrained)
    assert len(error.strip().splitlines()) == 1
    assert "--model." in error


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_as_weights_that_an_argument_names(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.bin").write_bytes(KINDS["torch.save"]())
    value = "evil.bin" if key == "checkpoint_path" else "{file: evil.bin}"
    error = refused(capsys, 2, "--model.kwargs", f"{{{key}: {value}}}")
    assert f"--model.kwargs: {key} is not allowed" in error


def test_as_a_mask(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "masks.safetensors").write_bytes(payload)
    with pytest.raises(RunError, match=r"masks\.safetensors"):
        load_tensors(tmp_path / "masks.safetensors")
    assert not Path("RAN").exists()


SETS = {"mnist": IDX, "cifar10": CIFAR[10], "cifar100": CIFAR[100]}


@pytest.mark.parametrize("name", SETS)
def test_as_a_data_set(payload: bytes, name: str, tmp_path: Path, capsys: Capture) -> None:
    for file in SETS[name]:
        (tmp_path / file).write_bytes(payload)
    error = refused(capsys, 2, "--data.name", name, "--data.root", str(tmp_path))
    assert len(error.strip().splitlines()) == 1
    assert f"--data.root: '{tmp_path / SETS[name][0]}'" in error
