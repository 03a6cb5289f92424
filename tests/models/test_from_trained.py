"""Runs that start from a trained model, `--model.init`, and runs with a teacher, `--distill`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import ARGUMENTS, KWARGS, assert_equal, optimizer, pruned, rows, tiny_config, tiny_setup, trained
from torch import nn
from torch.nn.utils import prune

from sparsekit.api import Budget, Stage
from sparsekit.cli import main
from sparsekit.config.options import DataConfig, DistillConfig, MasksConfig, ModelConfig
from sparsekit.errors import UserError
from sparsekit.executors.stacked import Lockstep
from sparsekit.files import load_tensors, save_tensors
from sparsekit.launch import fit
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.create import resolve_model
from sparsekit.models.state import cpu_state_dict
from sparsekit.planning.plan import start_from_sparsity
from sparsekit.planning.replicas import replicas_of
from sparsekit.pruning import masks
from sparsekit.run.progress import first_progress
from sparsekit.training.replica import Training
from sparsekit.training.setup import Setup


@pytest.fixture
def sparse_run(tiny_run: Path) -> Path:
    """A finished run, half of its prunable weights 0."""
    return tiny_run


def from_(path: Path, **changes: object) -> ModelConfig:
    return replace(ModelConfig(init=str(path)), **changes)


# --- --model.init ------------------------------------------------------------------------------------


def test_a_run_starts_with_the_weights_and_the_architecture_of_the_model_it_is_given(sparse_run: Path) -> None:
    setup = tiny_setup(OneShot(), model=from_(sparse_run))
    parent = first_progress(setup).parent
    saved = load_tensors(sparse_run / "model" / "model.safetensors")
    assert_equal(dict(sorted(parent.tensors.items())), dict(sorted(saved.items())))
    assert_equal(parent.masks, {n: load_tensors(sparse_run / "masks.safetensors")[n] for n in parent.masks})
    name, kwargs = resolve_model(setup.config.model)
    assert (name, kwargs | KWARGS) == ("resnet18", kwargs)


@pytest.mark.parametrize(
    "method",
    [pytest.param(IMP(dense=0.4), marks=pytest.mark.slow), OneShot(), pytest.param(GMP(), marks=pytest.mark.slow)],
)
def test_zeros_that_were_there_stay_to_the_end(method: object, sparse_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = fit(tiny_config(method, out=out, model=from_(sparse_run), sparsity=0.8, epochs=2))  # type: ignore[arg-type]
    before, after = (load_tensors(run / "masks.safetensors") for run in (sparse_run, out))
    weights = load_tensors(out / "model" / "model.safetensors")
    for name, mask in before.items():
        assert not (after[name] & ~mask).any()
        assert not weights[name][~mask].any()
    assert min(row["sparsity"] for row in rows(out, "segment")) == masks.sparsity(before)
    assert summary["sparsity"] == pytest.approx(0.8, abs=1e-4)
    loaded = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    assert_equal(dict(sorted(loaded.state_dict().items())), dict(sorted(weights.items())))


def test_a_dense_model_starts_with_nothing_masked_and_a_bare_state_dict_needs_its_name(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    setup = tiny_setup(OneShot(), model=from_(tmp_path / "dense.pt", name="resnet18", kwargs=KWARGS))
    assert all(mask.all() for mask in first_progress(setup).parent.masks.values())
    assert [stage.segment.sparsity for stage in (segment.stage for segment in setup.plan)] == [0.0, 0.9]
    with pytest.raises(UserError, match=r"--model.init .*layer1\.0\.conv1\.weight has shape"):
        tiny_setup(model=from_(tmp_path / "dense.pt", name="resnet18", kwargs={**KWARGS, "channels": [4, 8, 8, 8]}))
    with pytest.raises(UserError, match=r"lacks layer1\.0\.conv3\.weight|has layer1"):
        tiny_setup(model=from_(tmp_path / "dense.pt", name="resnet50"))


def saved(path: Path, *zero: str, sparse: str = "") -> Path:
    """A model with some layers of zeros only, and half of another's weights 0, as timm saves it."""
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    with torch.no_grad():
        for name in zero:
            model.get_parameter(name).zero_()
        if sparse:
            model.get_parameter(sparse).flatten()[::2] = 0.0
    timm.models.save_for_hf(model, path, model_args={**KWARGS, "in_chans": 1}, safe_serialization=True)
    return path


def test_a_layer_of_zeros_in_a_model_without_masks_is_new_and_is_trained(tmp_path: Path) -> None:
    """A head that starts at zero, as for fine-tuning, and a convolution that does, as in an adapter."""
    new = ("layer2.0.conv2.weight", "fc.weight")
    setup = tiny_setup(OneShot(), model=from_(saved(tmp_path / "dense", *new)), epochs=2)
    parent, stage = first_progress(setup).parent, setup.plan[0].stage
    assert masks.sparsity(parent.masks) == stage.segment.sparsity == 0.0
    assert trained(setup, parent, stage).tensors["fc.weight"].any()
    assert any(all(part in line for part in ("--model.init", *new)) for line in setup.notes)
    assert setup.warnings == ()


def test_a_layer_of_zeros_beside_real_zeros_is_told_since_it_may_have_been_pruned(tmp_path: Path) -> None:
    sparse = "layer1.0.conv1.weight"
    setup = tiny_setup(OneShot(), model=from_(saved(tmp_path / "x", "fc.weight", sparse=sparse)))
    kept = first_progress(setup).parent.masks
    assert (masks.sparsity({"": kept["fc.weight"]}), masks.sparsity({"": kept[sparse]})) == (0.0, 0.5)
    (warning,) = setup.warnings
    assert all(part in warning for part in ("--model.init", "fc.weight", "masks.safetensors"))
    assert any(f"{kept[sparse].numel() // 2:,} of" in line and sparse in line for line in setup.notes)


def test_a_layer_that_stored_masks_empty_stays_empty(tmp_path: Path) -> None:
    folder = saved(tmp_path / "x", "fc.weight")
    save_tensors(folder / "masks.safetensors", {"fc.weight": torch.zeros(10, 8, dtype=torch.bool)})
    setup = tiny_setup(OneShot(), model=from_(folder))
    assert masks.empty(first_progress(setup).parent.masks) == ["fc.weight"]
    assert setup.warnings == ()


def test_zeros_of_layers_that_are_left_out_are_told_with_their_number(tmp_path: Path) -> None:
    folder = saved(tmp_path / "x", sparse="fc.weight")
    setup = tiny_setup(OneShot(), model=from_(folder), masks=MasksConfig(exclude=["^fc"]))
    (warning,) = setup.warnings
    assert all(part in warning for part in ("--model.init", "fc.weight (40)", "trained again"))


def test_a_teacher_with_an_untrained_head_is_told(tmp_path: Path) -> None:
    setup = tiny_setup(distill=DistillConfig(str(saved(tmp_path / "x", "fc.weight"))))
    (warning,) = setup.warnings
    assert all(part in warning for part in ("--distill", "fc.weight", "zeros"))


def test_zeros_that_pretrained_weights_bring_are_told(tmp_path: Path) -> None:
    name = f"local-dir:{saved(tmp_path / 'x', sparse='layer3.0.conv2.weight')}"
    (warning,) = tiny_setup(model=ModelConfig(name, pretrained=True)).warnings
    assert all(part in warning for part in ("--model.pretrained", "288 of 12,560", "--model.init"))


@pytest.mark.parametrize(("floor", "fits"), [(1.0, False), (0.0, True)])
def test_a_floor_above_what_the_first_model_keeps_is_refused(floor: float, fits: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "x", "fc.weight")
    save_tensors(folder / "masks.safetensors", {"fc.weight": torch.zeros(10, 8, dtype=torch.bool)})
    config = {"model": from_(folder), "masks": MasksConfig(floor=floor)}
    if fits:
        tiny_setup(**config)  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=r"--masks\.floor 1 .*fc\.weight.*--model\.init keeps 0"):
        tiny_setup(**config)  # type: ignore[arg-type]


def test_a_kept_weight_that_happens_to_be_0_is_not_pruned_in_a_run_with_masks(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    file = out / "model" / "model.safetensors"
    tensors, kept = load_tensors(file), load_tensors(out / "masks.safetensors")
    name = "layer1.0.conv1.weight"
    index = tuple(kept[name].nonzero()[0])
    tensors[name][index] = 0.0
    save_tensors(file, tensors)
    parent = first_progress(tiny_setup(model=from_(out), sparsity=0.5)).parent
    assert parent.masks[name][index]
    kept[name][index] = True
    tensors[name][~kept[name]] = 1.0
    save_tensors(file, tensors)
    with pytest.raises(UserError, match=r"masks\.safetensors does not suit"):
        tiny_setup(model=from_(out), sparsity=0.5)


def test_a_plan_is_raised_to_what_is_masked_already_and_no_further() -> None:
    budget = Budget(10.0, 0.8, 0.0, lambda done: 1.0)
    plan = IMP(dense=0.4, cycles=4).plan(budget)
    stages = start_from_sparsity(tuple(Stage(budget, plan, i) for i in range(len(plan))), kept=501, total=1000)
    planned = [0.0, *(1.0 - 0.2 ** (k / 4) for k in (1, 2, 3)), 0.8]
    assert [s.segment.sparsity for s in stages] == pytest.approx([max(0.499, sparsity) for sparsity in planned])
    with pytest.raises(UserError, match=r"--sparsity is 0\.8, but 80\.1"):
        start_from_sparsity(stages, kept=199, total=1000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sparsity 0.4 --model.init RUN", "--sparsity is 0.4|50.00|denser"),
        ("--model.init nothing", "--model.init nothing|nothing is there|run directory"),
        ("--model.new_head true", "--model.new_head is true|--model.init"),
        ("--model.init RUN --model.pretrained true", "--model.init|--model.pretrained"),
        ("--model.init RUN/metrics.jsonl --model.name resnet18", "--model.init|damaged"),
        ("--distill nothing", "--distill nothing|nothing is there"),
        ("--distill", "--distill|needs a value"),
        ("--distill RUN/model/model.safetensors", "--distill|config.json"),
        ("--distill RUN --distill.temperature 0", "--distill.temperature is 0|above 0"),
        ("--distill RUN --distill.weight 1.5", "--distill.weight is 1.5|0 to 1"),
        ("--distill RUN --distill.heat 3", "--distill.heat"),
        ("--distill OTHER", "--distill|7 classes|10"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(
    arguments: str, words: str, sparse_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = timm.create_model("resnet18", num_classes=7, in_chans=1, **KWARGS)
    timm.models.save_for_hf(other, tmp_path / "other", model_args={**KWARGS, "in_chans": 1}, safe_serialization=True)
    given = arguments.replace("RUN", str(sparse_run)).replace("OTHER", str(tmp_path / "other")).split()
    assert main.main(["fit", *ARGUMENTS[:4], "--out", str(tmp_path / "out"), *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words.split("|")), err
    assert not (tmp_path / "out").exists()


# --- --model.new_head --------------------------------------------------------------------------------


def images(root: Path, classes: int) -> DataConfig:
    """A folder of noisy images with tints, one a class."""
    random = np.random.default_rng(classes)
    for part, count in (("train", 10), ("val", 4)):
        for label in range(classes):
            (root / part / f"c{label}").mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (10, 10, 3)) + np.array([0, 20, 40]) * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"c{label}" / f"{number}.png")
    return DataConfig("imagefolder", str(root), batch_size=8, image_size=8, held_out=0.2, workers=0)


def test_a_sparse_backbone_is_transferred_to_other_classes_with_a_dense_head(tmp_path: Path) -> None:
    """`--masks.exclude` keeps the head out of the pruning, and 90 % are then what the backbone has."""
    masking = MasksConfig(exclude=[r"^fc\."])
    pretrained, out = tmp_path / "pretrained", tmp_path / "run"
    common = {"sparsity": 0.9, "epochs": 2, "masks": masking, "optimizer": optimizer(lr=0.01)}
    fit(tiny_config(OneShot(dense=0.5), out=pretrained, data=images(tmp_path / "three", 3), **common))
    data = images(tmp_path / "four", 4)
    with pytest.raises(UserError, match=r"other classes: .*'c3'.*--model\.new_head true"):
        fit(tiny_config(OneShot(), out=out, data=data, model=from_(pretrained), **common))
    fit(tiny_config(OneShot(), out=out, data=data, model=from_(pretrained, new_head=True), **common))
    before, after = (load_tensors(run / "masks.safetensors") for run in (pretrained, out))
    weights = load_tensors(out / "model" / "model.safetensors")
    assert masks.sparsity(after) == pytest.approx(0.9, abs=1e-4)
    assert_equal(before, after)
    assert all(not weights[name][~mask].any() for name, mask in before.items())
    assert weights["fc.weight"].shape == (4, 8)
    assert bool((weights["fc.weight"] != 0).all())
    assert {row["sparsity"] for row in rows(out, "segment")} == {masks.sparsity(before)}
    assert timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).num_classes == 4


def test_without_exclusion_the_new_head_starts_dense_and_is_pruned_as_any_layer(sparse_run: Path) -> None:
    setup = tiny_setup(model=from_(sparse_run, new_head=True), sparsity=0.6)
    stored, parent = load_tensors(sparse_run / "masks.safetensors"), first_progress(setup).parent
    assert bool(parent.masks["fc.weight"].all())
    assert_equal(
        {n: m for n, m in parent.masks.items() if n != "fc.weight"},
        {n: stored[n] for n in parent.masks if n != "fc.weight"},
    )
    assert not torch.equal(
        parent.tensors["fc.weight"], load_tensors(sparse_run / "model" / "model.safetensors")["fc.weight"]
    )
    assert any("fc" in note and "anew" in note for note in setup.notes)
    pruned_parent, _ = pruned(setup, parent, len(setup.plan) - 1)
    assert masks.sparsity(pruned_parent.masks) == pytest.approx(0.6, abs=1e-4)
    assert not pruned_parent.masks["fc.weight"].all()


def test_a_run_of_other_classes_gives_its_masks_but_the_heads(sparse_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "seven"
    shutil.copytree(sparse_run, out)
    stored = {}
    for file in (out / "masks.safetensors", out / "model" / "model.safetensors"):
        tensors = load_tensors(file)
        stored = {name: t[:7].clone() if name.startswith("fc.") else t for name, t in tensors.items()}
        save_tensors(file, stored)
    parent = first_progress(tiny_setup(model=from_(out, new_head=True), sparsity=0.6)).parent
    kept = load_tensors(sparse_run / "masks.safetensors")
    assert parent.masks["fc.weight"].shape == (10, 8)
    assert bool(parent.masks["fc.weight"].all())
    for name, mask in parent.masks.items():
        if name != "fc.weight":
            assert torch.equal(mask, kept[name])
            assert torch.equal(parent.tensors[name], stored[name])


def test_a_file_that_prune_made_starts_a_run_with_its_masks_and_says_what_it_chose(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.random_unstructured(module, "weight", 0.5)
    named = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": named, "state_dict_ema": named}, tmp_path / "m.ckpt")
    setup = tiny_setup(OneShot(), model=from_(tmp_path / "m.ckpt", name="resnet18", kwargs=KWARGS))
    parent = first_progress(setup).parent
    for name, mask in parent.masks.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(mask, module.weight_mask.bool())
        assert torch.equal(parent.tensors[name], module.weight.detach())
    (note,) = (note for note in setup.notes if "weights:" in note)
    assert "state_dict_ema" in note


# --- --distill ---------------------------------------------------------------------------------------


def distilled(run: Path, temperature: float = 2.0, weight: float = 0.3, **changes: object) -> Setup:
    return tiny_setup(distill=DistillConfig(str(run), temperature, weight), label_smoothing=0.1, **changes)


def test_the_loss_is_the_formula_of_hinton(sparse_run: Path) -> None:
    setup = distilled(sparse_run)
    images, labels = next(iter(setup.data.train_batches(0, 1)))
    logits = setup.model(images)
    teacher = timm.create_model(f"local-dir:{sparse_run / 'model'}", pretrained=True).eval()
    taught = teacher(images)
    total = 0.0
    for ours, theirs, label in zip(logits.tolist(), taught.tolist(), labels.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, ours)) for v in ours]
        q, r = ([math.exp(v / 2) / sum(math.exp(u / 2) for u in row) for v in row] for row in (theirs, ours))
        hard = -sum((0.9 * (i == label) + 0.01) * math.log(x) for i, x in enumerate(p))
        soft = sum(a * math.log(a / b) for a, b in zip(q, r, strict=True))
        total += 0.7 * hard + 0.3 * 4 * soft
    assert float(setup.loss(logits, labels, images).detach()) == pytest.approx(total / len(labels), rel=1e-4)


def test_the_teacher_answers_in_evaluation_mode_and_learns_nothing(sparse_run: Path) -> None:
    setup = distilled(sparse_run)
    assert setup.teacher is not None
    before = cpu_state_dict(setup.teacher)
    trained(setup, first_progress(setup).parent, setup.plan[0].stage)
    assert_equal(cpu_state_dict(setup.teacher), before)  # BatchNorm statistics too
    assert not any(module.training for module in setup.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in setup.teacher.parameters())


def test_a_weight_of_0_trains_as_without_a_teacher_and_any_other_does_not(sparse_run: Path) -> None:
    plain = tiny_setup(label_smoothing=0.1)
    alone, none, some = (
        trained(setup, first_progress(setup).parent, setup.plan[0].stage).tensors
        for setup in (plain, distilled(sparse_run, weight=0.0), distilled(sparse_run, weight=0.5))
    )
    assert_equal(alone, none)
    assert not torch.equal(alone["fc.weight"], some["fc.weight"])


def test_replicas_in_lockstep_learn_from_the_teacher_as_those_one_after_another(sparse_run: Path) -> None:
    setup = distilled(sparse_run, weight=0.9)
    parent, stage = first_progress(setup).parent, setup.plan[0].stage
    replicas, schedule = replicas_of(setup.config, stage), setup.method.learning_rate(stage)
    lockstep = Lockstep(setup, 2)
    together = [
        Training(setup, parent, stage, r, schedule, model=m) for r, m in zip(replicas, lockstep.models, strict=True)
    ]
    batches = [list(t.batches())[:3] for t in together]
    for step in range(3):
        lockstep.step(together, [b[step][0] for b in batches], [b[step][1] for b in batches])
    for replica, training, mine in zip(replicas, together, batches, strict=True):
        alone = Training(setup, parent, stage, replica, schedule)
        for images, labels in mine:
            alone.step(images, labels)
        for (name, one), other in zip(alone.model.named_parameters(), training.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(alone.loss, training.loss)


def test_yaml_takes_a_teacher_as_a_name_or_with_its_options(
    sparse_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (f"distill: {sparse_run}", f"distill: {{model: {sparse_run}, weight: 0.5}}"):
        (tmp_path / "c.yaml").write_text(text)
        assert main.main(["fit", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
        out = capsys.readouterr().out
        assert f"model: {sparse_run}" in out
        assert "weight: 0.5" in out


def test_a_teacher_is_any_timm_model_of_the_data_whatever_its_architecture(sparse_run: Path, tmp_path: Path) -> None:
    wide = timm.create_model("resnet18", num_classes=10, in_chans=1, layers=[1, 1, 1, 1], channels=[16, 16, 16, 16])
    arguments = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "in_chans": 1}
    timm.models.save_for_hf(wide, tmp_path / "wide", model_args=arguments, safe_serialization=True)
    card = json.loads((tmp_path / "wide" / "config.json").read_text())["pretrained_cfg"]
    assert card["input_size"] == [1, 224, 224]
    setup = distilled(tmp_path / "wide")
    assert isinstance(setup.teacher, nn.Module)
    images, _ = next(iter(setup.data.train_batches(0, 1)))
    images = images[:4]
    raw = images * setup.data.std[0] + setup.data.mean[0]
    large = F.interpolate(raw, (224, 224), mode=card["interpolation"], antialias=True)
    expected = wide.eval()((large - card["mean"][0]) / card["std"][0])
    torch.testing.assert_close(setup.teacher(images), expected, rtol=1e-3, atol=1e-4)
