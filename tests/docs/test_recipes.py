"""The recipes of docs/own-loop.md: each is run as it stands and resumed, and ends with the zeros that it plans."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documents
import pytest
import torch
import torch.nn.functional as F
from documents import ROOT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.docs
PAGE = ROOT / "docs" / "own-loop.md"
BLOCKS = [block for block in documents.blocks(PAGE) if block.language == "python"]
TOTAL, KEPT = 16 * 64 + 64 * 2, 115
"""Prunable weights of the recipes' model, and how many 90 % leaves."""


def recipe(needs: str) -> list[str]:
    """The blocks that need a library: the callback, and how it is used."""
    return [block.text for block in BLOCKS if block.needs == needs]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))


def examples() -> tuple[Tensor, Tensor]:
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def kept(model: nn.Module) -> int:
    return sum(int((m.weight != 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


def test_a_plain_loop_and_soups_by_hand_end_at_the_planned_sparsity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, by_hand = (block for block in BLOCKS if not block.needs)
    script = (ROOT / "docs" / "scripts" / "own_loop.py").read_text("utf-8")
    assert by_hand.text in script
    spaces: list[dict[str, Any]] = [{}, {}]
    torch.manual_seed(0)
    for source, space in zip((plain.text, script), spaces, strict=True):
        exec(compile(source, "recipe", "exec"), space)
        assert kept(space["model"]) == KEPT == TOTAL - round(0.9 * TOTAL)
    saved = torch.load(tmp_path / "sparse.pt", weights_only=True)
    assert int((saved["0.weight"] != 0).sum() + (saved["2.weight"] != 0).sum()) == KEPT

    space = spaces[1]
    assert len(space["replicas"]) == 3
    each = torch.stack([weights["0.weight"] for weights, _ in space["replicas"]])
    torch.testing.assert_close(space["model"][0].weight.detach(), each.mean(0))
    assert (space["model"](space["x"]).argmax(1) == space["y"]).float().mean() > 0.9


# --- Lightning ----------------------------------------------------------------------------------------


@pytest.fixture
def lightning() -> Iterator[Any]:
    found = pytest.importorskip("lightning", reason="needs Lightning: pip install lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def test_lightnings_recipe(lightning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 0.01)

    callback, use = recipe("lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    original, checkpoints = lightning.Trainer, lightning.pytorch.callbacks.ModelCheckpoint
    keep = checkpoints(tmp_path / "kept", every_n_train_steps=100, save_top_k=-1)

    def trainer(callbacks: list[Any], **options: Any) -> Any:
        more = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
        return original(callbacks=[*callbacks, keep], **{**options, **more, **quiet})

    monkeypatch.setattr(lightning, "Trainer", trainer)
    space: dict[str, Any] = {"module": Module(), "loader": DataLoader(TensorDataset(*examples()), 50)}
    exec(callback + use, space)
    whole = space["module"]
    assert space["trainer"].callbacks[0].pruner.done == 200
    assert kept(whole) == KEPT

    cut = sorted((tmp_path / "kept").glob("*step=100*.ckpt"))[0]
    again: dict[str, Any] = {**space, "module": Module()}
    exec(re.sub(r"loader\)", f"loader, ckpt_path={str(cut)!r})", callback + use), again)
    assert kept(again["module"]) == KEPT
    for name, tensor in again["module"].state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


# --- Hugging Face -------------------------------------------------------------------------------------


def test_transformers_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs transformers and accelerate: pip install transformers accelerate"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("accelerate", reason=reason)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    tokens = torch.randint(20, (200, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[0] > 9)} for row in tokens]

    def space() -> dict[str, Any]:
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"),
            num_train_epochs=4,
            per_device_train_batch_size=10,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            save_steps=20,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        return {"model": transformers.BertForSequenceClassification(config), "arguments": arguments, "examples": data}

    callback, use = recipe("transformers")
    whole = space()
    exec(callback + use, whole)
    total = sum(m.weight.numel() for m in whole["model"].modules() if isinstance(m, nn.Linear))
    assert kept(whole["model"]) == total - round(0.9 * total)

    again = space()
    folder = str(tmp_path / "out" / "checkpoint-20")
    exec(callback + use.replace("train()", f"train(resume_from_checkpoint={folder!r})"), again)
    assert kept(again["model"]) == total - round(0.9 * total)
    for name, tensor in again["model"].state_dict().items():
        assert torch.equal(tensor, whole["model"].state_dict()[name]), name
