"""`sparsekit merge`: soups of finished models, trained here or anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cards import CLASSES, card_of, copied, quartered, reordered
from tiny import KWARGS, assert_equal, tiny_config
from torch import Tensor
from torch.nn.utils import prune

from sparsekit.cli import main
from sparsekit.config.options import DataConfig, ModelConfig
from sparsekit.data import load
from sparsekit.errors import UserError
from sparsekit.evaluation.batchnorm import recalibrate_batchnorm
from sparsekit.evaluation.scores import score_model
from sparsekit.files import load_tensors, save_tensors
from sparsekit.launch import fit
from sparsekit.merges.uniform import Uniform
from sparsekit.merging.finished_context import FinishedMergeContext
from sparsekit.merging.overlap import compare_masks
from sparsekit.methods.oneshot import OneShot
from sparsekit.models.saved import open_saved_model
from sparsekit.pruning import masks

Capture = pytest.CaptureFixture[str]
MODEL = ["--model.name", "resnet18", "--model.kwargs", json.dumps(KWARGS | {"num_classes": 10, "in_chans": 1})]
DATA = ["--data.name", "digits", "--data.image_size", "8"]

# Plain PyTorch: three models trained apart from one pruned start, the mask held by hand.
SCRIPT = """
import sys, torch, torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(0)
start = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
masks = {n: (torch.rand_like(p) < 0.3) for n, p in start.named_parameters() if p.dim() > 1}
for seed in range(3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    model.load_state_dict(start.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(20):
        images, labels = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        for name, weight in model.named_parameters():
            if name in masks:
                weight.data *= masks[name]
    torch.save(model.state_dict(), f"{seed}.pt")
assert "sparsekit" not in sys.modules
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three state dicts of a plain script."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True, timeout=600)
    return [folder / f"{seed}.pt" for seed in range(3)]


@pytest.fixture(scope="module")
def runs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run, and two that start from it and train on: same mask, other weights."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in ((1, "b"), (2, "c")):
        model = ModelConfig(init=str(tiny_run))
        fit(tiny_config(OneShot(), out=folder / name, sparsity=0.5, epochs=3, seed=seed, model=model))
    return [tiny_run, folder / "b", folder / "c"]


def merge(*arguments: Any) -> int:
    return main.main(["merge", *map(str, arguments)])


def by_hand(tensors: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """The weighted mean in float64; integers from the first."""
    found = {}
    for name, first in tensors[0].items():
        total = sum(w * t[name].numpy().astype(np.float64) for w, t in zip(weights, tensors, strict=True))
        found[name] = torch.from_numpy(np.asarray(total)).to(first.dtype) if first.is_floating_point() else first
    return found


def state_dict(path: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal but for the last bit of float32; zeros exactly."""
    return left.keys() == right.keys() and all(
        torch.allclose(left[n], right[n], rtol=2e-7, atol=0) and torch.equal(left[n] == 0, right[n] == 0) for n in left
    )


# --- soups of anybody's models -----------------------------------------------------------------------


def test_a_soup_of_three_plain_checkpoints_is_their_average_by_hand(plain: list[Path], tmp_path: Path) -> None:
    assert merge(*plain, "--merge", "uniform", "-o", tmp_path / "soup") == 0
    soup, three = load_tensors(tmp_path / "soup" / "model.safetensors"), [state_dict(path) for path in plain]
    assert close(soup, by_hand(three, [1 / 3] * 3))
    for name in ("0.weight", "4.weight"):
        assert torch.equal(soup[name] == 0, three[0][name] == 0)
        assert 0.6 < float((soup[name] == 0).float().mean()) < 0.8
    told = json.loads((tmp_path / "soup" / "merge.json").read_text())
    assert told["coefficients"] == pytest.approx([1 / 3] * 3)
    assert told["models"] == [str(path) for path in plain]


def test_the_same_model_may_come_twice_and_files_may_be_of_any_kind(plain: list[Path], tmp_path: Path) -> None:
    save_tensors(tmp_path / "b.safetensors", state_dict(plain[1]))
    torch.save({"state_dict": state_dict(plain[2])}, tmp_path / "c.tar")
    assert merge(plain[0], plain[0], tmp_path / "b.safetensors", tmp_path / "c.tar", "-o", tmp_path / "soup") == 0
    soup = load_tensors(tmp_path / "soup" / "model.safetensors")
    assert close(soup, by_hand([state_dict(path) for path in plain], [0.5, 0.25, 0.25]))


def test_half_precision_stays_half_precision(plain: list[Path], tmp_path: Path) -> None:
    halves = [{n: t.half() if t.is_floating_point() else t for n, t in state_dict(p).items()} for p in plain[:2]]
    for i, half in enumerate(halves):
        torch.save(half, tmp_path / f"{i}.pt")
    assert merge(tmp_path / "0.pt", tmp_path / "1.pt", "-o", tmp_path / "soup") == 0
    assert close(load_tensors(tmp_path / "soup" / "model.safetensors"), by_hand(halves, [0.5, 0.5]))


def test_united_masks_keep_what_any_keeps_and_are_pruned_again(
    plain: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    other = state_dict(plain[1])
    other["4.weight"] = other["4.weight"].flip(0)  # another mask of the same sparsity
    torch.save(other, tmp_path / "other.pt")
    two = [state_dict(plain[0]), other]
    assert merge(plain[0], tmp_path / "other.pt", "--masks", "union", "-o", tmp_path / "union") == 0
    union = load_tensors(tmp_path / "union" / "model.safetensors")
    assert close(union, by_hand(two, [0.5, 0.5]))
    assert torch.equal(union["4.weight"] != 0, (two[0]["4.weight"] != 0) | (other["4.weight"] != 0))

    arguments = ["--masks", "union", "--prune-again", "0.9"]
    assert merge(plain[0], tmp_path / "other.pt", *arguments, "-o", tmp_path / "again") == 0
    assert "90.01 %" in capsys.readouterr().out
    again = load_tensors(tmp_path / "again" / "model.safetensors")
    names = ("0.weight", "4.weight")
    whole = torch.cat([union[name].flatten() for name in names])
    kept = torch.cat([again[name].flatten() for name in names])
    assert int((kept != 0).sum()) == len(whole) - round(0.9 * len(whole))
    assert whole[kept != 0].abs().min() >= whole[kept == 0].abs().max()
    assert torch.equal(kept[kept != 0], whole[kept != 0])
    saved = load_tensors(tmp_path / "again" / "masks.safetensors")
    assert all(torch.equal(saved[name], again[name] != 0) for name in names)


def test_pruning_again_keeps_the_floor_of_every_layer(plain: list[Path], tmp_path: Path, capsys: Capture) -> None:
    small = state_dict(plain[0])
    small["0.weight"] = 1e-4 * small["0.weight"]  # its 72 weights would go first
    torch.save(small, tmp_path / "small.pt")
    for floor, kept in (("0", 0), ("5", 5)):
        given = ["--prune-again", "0.95", "--floor", floor]
        assert merge(tmp_path / "small.pt", *given, "-o", tmp_path / floor) == 0
        soup = load_tensors(tmp_path / floor / "model.safetensors")
        assert int((soup["0.weight"] != 0).sum()) == kept
        assert int((soup["4.weight"] != 0).sum()) == 2952 - round(0.95 * 2952) - kept
        assert ("empty" in capsys.readouterr().out) == (not kept)


def test_a_head_of_zeros_is_no_mask_whatever_it_is_merged_with(
    plain: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    fresh = state_dict(plain[0]) | {"4.weight": torch.zeros(10, 288)}
    torch.save(fresh, tmp_path / "fresh.pt")
    assert merge(tmp_path / "fresh.pt", tmp_path / "fresh.pt", "-o", tmp_path / "soup") == 0
    out = capsys.readouterr().out
    assert re.search(r"zeros +.*4\.weight of .*fresh\.pt.*dense", out), out
    assert re.search(r"empty +4\.weight: .*", out), out
    assert load_tensors(tmp_path / "soup" / "masks.safetensors")["4.weight"].all()
    assert masks.empty(open_saved_model("MODEL", tmp_path / "soup").masks(["4.weight"])) == []


def test_masks_that_differ_are_refused_with_their_overlap(plain: list[Path], tmp_path: Path, capsys: Capture) -> None:
    other = state_dict(plain[0])
    other["4.weight"][:5] = 0.0
    torch.save(other, tmp_path / "other.pt")
    assert merge(plain[0], plain[1], tmp_path / "other.pt", "-o", tmp_path / "soup") == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "other.pt differ in " in err
    assert "--masks union" in err
    first, third = (
        {n: t != 0 for n, t in one.items() if n in ("0.weight", "4.weight")} for one in (state_dict(plain[0]), other)
    )
    both = sum(int((first[n] & third[n]).sum()) for n in first)
    either = sum(int((first[n] | third[n]).sum()) for n in first)
    assert f"{both / either:.3f}" in out.splitlines()[1].split()
    assert f"{1 - either / 2952:.2%}" in out.splitlines()[1]
    assert not (tmp_path / "soup").exists()


# --- runs, data, BatchNorm ---------------------------------------------------------------------------


def test_runs_are_merged_with_their_masks_and_batchnorm_measured_again(
    runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    assert merge(*runs, "-o", tmp_path / "soup") == 0
    told = json.loads((tmp_path / "soup" / "merge.json").read_text())
    soup = timm.create_model(f"local-dir:{tmp_path / 'soup'}", pretrained=True)
    three = [load_tensors(run / "model" / "model.safetensors") for run in runs]
    mean = by_hand(three, [1 / 3] * 3)
    parameters = {name for name, _ in soup.named_parameters()}
    assert close({n: t for n, t in soup.state_dict().items() if n in parameters}, {n: mean[n] for n in parameters})
    kept = load_tensors(runs[0] / "masks.safetensors")
    assert_equal(load_tensors(tmp_path / "soup" / "masks.safetensors"), kept)
    assert told["sparsity"] == masks.sparsity(kept)

    data = load(DataConfig(image_size=8), torch.device("cpu"), channels_last=False)
    check = timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS)
    check.load_state_dict(mean)
    autocast = torch.autocast("cpu", enabled=False)
    recalibrate_batchnorm(check, data.evaluation_batches("train"), autocast)
    for name, tensor in check.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(soup.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
            assert not torch.equal(mean[name], tensor)
    score = score_model(soup, data.evaluation_batches("test"), autocast)
    assert told["test.accuracy"] == pytest.approx(score.accuracy)
    assert f"{100 * score.accuracy:.2f} % on the test split" in capsys.readouterr().out


def test_greedy_looks_at_held_out_images_and_averages_batchnorm_where_asked(runs: list[Path], tmp_path: Path) -> None:
    assert merge(*runs, "--merge", "greedy", "--batchnorm", "average", "-o", tmp_path / "soup") == 0
    told = json.loads((tmp_path / "soup" / "merge.json").read_text())
    data = load(DataConfig(image_size=8), torch.device("cpu"), channels_last=False)
    each = []
    for run in runs:
        model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
        split = data.evaluation_batches("held_out")
        each.append(score_model(model, split, torch.autocast("cpu", enabled=False)).accuracy)
    assert told["candidates"] == pytest.approx(each)
    assert told["held_out.accuracy"] >= max(each) - 1e-9
    assert told["soup.lost"] is False
    used = [runs[i] for i in told["ingredients"]]
    three = [load_tensors(run / "model" / "model.safetensors") for run in used]
    assert close(load_tensors(tmp_path / "soup" / "model.safetensors"), by_hand(three, [1 / len(used)] * len(used)))


def test_a_soup_that_lost_says_so(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    """The other model has its last layer the wrong way round, three times over: so has their mean, once."""
    tensors = load_tensors(runs[0] / "model" / "model.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    save_tensors(wrong, {name: -3.0 * t if name.startswith("fc.") else t for name, t in tensors.items()})
    assert merge(runs[0], wrong, "-o", tmp_path / "soup") == 0
    told, out = json.loads((tmp_path / "soup" / "merge.json").read_text()), capsys.readouterr().out
    best = max(told["candidates"])
    assert told["soup.lost"] is True
    assert f"{100 * (best - told['held_out.accuracy']):.2f} points below the best model" in out
    assert "only models that were trained from a common one average well" in out
    assert f"{100 * sum(told['candidates']) / 2:.2f} % held out in the mean, {100 * best:.2f} % the best" in out


def test_what_pruning_again_lost_is_not_blamed_on_the_averaging(
    runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    assert merge(runs[0], runs[0], "--prune-again", "0.995", "-o", tmp_path / "soup") == 0
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["soup.lost"] is True
    out = capsys.readouterr().out
    assert re.search(r"below the best model: it was pruned again, from \d\d\.\d\d % sparse to 99\.50 %", out), out


def test_foreign_models_with_data_given_become_a_directory_that_timm_loads(runs: list[Path], tmp_path: Path) -> None:
    files = [run / "model" / "model.safetensors" for run in runs]
    assert merge(*files, *MODEL, *DATA, "-o", tmp_path / "soup") == 0
    assert merge(*runs, "-o", tmp_path / "same") == 0
    one, other = (timm.create_model(f"local-dir:{tmp_path / n}", pretrained=True) for n in ("soup", "same"))
    assert_equal(one.state_dict(), other.state_dict())


def test_models_without_a_matrix_are_averaged_too(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save({"w1": torch.full((3,), value)}, tmp_path / f"{name}.pt")
    assert merge(tmp_path / "a.pt", tmp_path / "b.pt", "-o", tmp_path / "soup") == 0
    assert load_tensors(tmp_path / "soup" / "model.safetensors")["w1"].tolist() == [1.5] * 3


@pytest.mark.parametrize("asked", [len, dict, list, lambda p: p.get("x"), lambda p: "x" in p, lambda p: p.values()])
def test_whatever_is_asked_of_a_parent_that_is_not_there_says_so(asked: Any) -> None:
    step = FinishedMergeContext(None, {}, "mine", None).step(Uniform(), [], frozenset(), 0)
    with pytest.raises(UserError, match=r"--merge mine asks for what the models were trained from .*; .* --parent"):
        list(asked(step.parent))


def test_a_merge_that_compares_with_the_parent_needs_it(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("sparsekit_merges", reason="needs the package in plugins/sparsekit-merges")
    arguments = [*runs[1:], "--merge", "ties", "-o", tmp_path / "soup"]
    assert merge(*arguments) == 2
    err = capsys.readouterr().err
    assert "--parent" in err
    assert err.count("\n") == 1
    assert merge(*arguments, "--parent", runs[0]) == 0
    soup, kept = load_tensors(tmp_path / "soup" / "model.safetensors"), load_tensors(runs[0] / "masks.safetensors")
    assert not any(soup[name][~mask].any() for name, mask in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fisher", "learned", "likelihood", "model_stock"])
def test_every_installed_merge_works_on_finished_runs(name: str, runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("sparsekit_merges", reason="needs the package in plugins/sparsekit-merges")
    assert merge(*runs[1:], "--merge", name, "--parent", runs[0], "-o", tmp_path / "soup") == 0
    kept, soup = load_tensors(runs[0] / "masks.safetensors"), load_tensors(tmp_path / "soup" / "model.safetensors")
    assert not any(soup[n][~mask].any() for n, mask in kept.items())


@pytest.mark.parametrize(
    "more", [["fisher"], ["likelihood"], *(["learned", "--merge.per", p] for p in ("model", "tensor"))]
)
def test_merges_that_do_not_compare_with_the_parent_need_none(
    more: list[str], runs: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("sparsekit_merges", reason="needs the package in plugins/sparsekit-merges")
    quick = ["--merge.steps", 2] if more[0] == "learned" else []
    assert merge(*runs[1:], "--merge", *more, *quick, "-o", tmp_path / "soup") == 0
    kept, soup = load_tensors(runs[0] / "masks.safetensors"), load_tensors(tmp_path / "soup" / "model.safetensors")
    assert not any(soup[n][~mask].any() for n, mask in kept.items())


# --- what each config.json says -----------------------------------------------------------------------


def told_by(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "merge.json").read_text())
    return found


@pytest.mark.parametrize("batchnorm", ["recalibrate", "average"])
def test_a_soup_is_scored_and_recalibrated_on_images_that_are_made_as_its_models_say(
    batchnorm: str, runs: list[Path], tmp_path: Path
) -> None:
    """The same functions of an image, trained at a quarter of the std; --data.image_size is not given either."""
    quarters = [quartered(run / "model", tmp_path / f"q{i}") for i, run in enumerate(runs[:2])]
    more = ["--data.name", "digits", "--batchnorm", batchnorm]
    assert merge(*runs[:2], *more, "-o", tmp_path / "soup") == 0
    assert merge(*quarters, *more, "-o", tmp_path / "quarter") == 0
    expected, found = told_by(tmp_path / "soup"), told_by(tmp_path / "quarter")
    for key in ("candidates", "held_out.accuracy", "held_out.loss", "test.accuracy", "test.loss"):
        assert found[key] == pytest.approx(expected[key], abs=1e-6), key
    one, other = (load_tensors(tmp_path / name / "model.safetensors") for name in ("soup", "quarter"))
    assert_equal({n: t * 4 if n == "conv1.weight" else t for n, t in other.items()}, one)


def test_each_model_is_scored_on_its_own_images_and_the_best_keeps_its_card(runs: list[Path], tmp_path: Path) -> None:
    quarter = quartered(runs[1] / "model", tmp_path / "q")
    large = copied(runs[2] / "model", tmp_path / "large", input_size=[1, 16, 16])
    assert merge(*runs, "--merge", "best", "-o", tmp_path / "plain") == 0
    accuracies = told_by(tmp_path / "plain")["candidates"]
    for sources in ([runs[0], quarter, large], [quarter, runs[0], large]):
        out = tmp_path / f"soup-of-{sources[0].name}"
        assert merge(*sources, "--merge", "best", "--data.name", "digits", "-o", out) == 0
        found = dict(zip(sources, told_by(out)["candidates"], strict=True))
        assert (found[runs[0]], found[quarter]) == (accuracies[0], accuracies[1])
        assert found[large] != accuracies[2]
        best = max(sources, key=lambda source: found[source])
        assert card_of(out) == card_of(best if (best / "config.json").is_file() else best / "model")


@pytest.mark.parametrize("data", [[], DATA])
def test_models_of_differing_normalisation_have_no_soup(
    data: list[str], runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    quarter = quartered(runs[1] / "model", tmp_path / "q")
    for name in ("uniform", "greedy") if data else ("uniform",):
        assert merge(runs[0] / "model", quarter, *data, "--merge", name, "-o", tmp_path / "soup") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert all(word in err for word in ("normalisation", str(quarter), str(runs[0]), "config.json"))
        assert not (tmp_path / "soup").exists()


def test_means_of_other_splits_of_one_data_set_are_the_same(runs: list[Path], tmp_path: Path) -> None:
    mean = card_of(runs[1] / "model")["pretrained_cfg"]["mean"][0]
    near = copied(runs[1] / "model", tmp_path / "near", mean=[mean + 0.002])
    assert merge(runs[0], near, "-o", tmp_path / "soup") == 0


def test_another_crop_or_size_is_told(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    other = copied(runs[1] / "model", tmp_path / "other", input_size=[1, 16, 16], crop_pct=0.8)
    assert merge(runs[0], other, "-o", tmp_path / "soup") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "soup's config.json" in line)
    assert all(word in line for word in (str(other), "16×16 pixels", "crop_pct 0.8", "8×8 pixels", "crop_pct 1"))
    assert card_of(tmp_path / "soup") == card_of(runs[0] / "model")


@pytest.mark.parametrize("data", [pytest.param([], marks=pytest.mark.slow), DATA])
def test_models_that_name_classes_in_another_order_are_matched_by_name(
    data: list[str], runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    order = [0, 2, 1, *range(3, 10)]
    other = reordered(runs[1] / "model", tmp_path / "other", order)
    for number, (models, more) in enumerate(
        (((runs[0], runs[1]), []), ((runs[0], other), []), ((other, runs[0]), []), ((*runs[:2],), ["--parent", other]))
    ):
        assert merge(*models, *more, *data, "-o", tmp_path / f"soup{number}") == 0
        assert ("in another order" in capsys.readouterr().out) == (number > 0)
    expected = load_tensors(tmp_path / "soup0" / "model.safetensors")
    for number, rows in ((1, range(10)), (2, order), (3, range(10))):
        found = load_tensors(tmp_path / f"soup{number}" / "model.safetensors")
        assert card_of(tmp_path / f"soup{number}")["label_names"] == [CLASSES[label] for label in rows]
        for name, tensor in expected.items():
            same = tensor[list(rows)] if name.startswith("fc.") else tensor
            torch.testing.assert_close(found[name], same, msg=name)


@pytest.mark.parametrize("data", [[], DATA])
def test_models_that_name_other_classes_are_refused_by_name(
    data: list[str], runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    strange = copied(runs[1] / "model", tmp_path / "strange", names=[*CLASSES[:-1], "zorilla"])
    assert merge(runs[0], strange, *data, "-o", tmp_path / "soup") == 2
    assert "'zorilla', not '9'" in capsys.readouterr().err
    twice = copied(runs[1] / "model", tmp_path / "twice", names=[*CLASSES[:-1], "0"])
    assert merge(runs[0], twice, *data, "-o", tmp_path / "soup") == 2
    assert str(twice) in capsys.readouterr().err
    assert not (tmp_path / "soup").exists()


def test_a_parent_of_differing_normalisation_is_refused(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    quarter = quartered(runs[1] / "model", tmp_path / "q")
    assert merge(*runs[:2], "--parent", quarter, "--merge", "ties", "-o", tmp_path / "soup") == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("normalisation", str(quarter), str(runs[0])))
    assert not (tmp_path / "soup").exists()


def test_a_soup_of_models_of_another_order_than_the_datas_is_scored_by_name(
    runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    others = [reordered(run / "model", tmp_path / f"o{i}", order) for i, run in enumerate(runs[:2])]
    assert merge(*runs[:2], "-o", tmp_path / "soup") == 0
    assert "by name" not in capsys.readouterr().out
    assert merge(*others, *DATA, "-o", tmp_path / "other") == 0
    assert "by name" in capsys.readouterr().out
    expected, found = told_by(tmp_path / "soup"), told_by(tmp_path / "other")
    for key in ("candidates", "held_out.accuracy", "test.accuracy", "test.loss"):
        assert found[key] == pytest.approx(expected[key], abs=1e-6), key
    assert card_of(tmp_path / "other")["label_names"] == [CLASSES[label] for label in order]


# --- bad input ---------------------------------------------------------------------------------------


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def test_models_before_prune_remove_are_averaged_as_they_compute(tmp_path: Path) -> None:
    """One of them has its pruning undone, and comes in a wrapper: the same weights in another form."""
    states, effective, kept = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
        for module in (model[0], model[2]):
            prune.random_unstructured(module, "weight", 0.9)
        kept.append({f"{i}.weight": model[i].weight_mask.bool() for i in (0, 2)})
        if seed == 2:
            for module in (model[0], model[2]):
                prune.remove(module, "weight")
        states.append(model.state_dict())
        effective.append({f"{i}.{n}": getattr(model[i], n).detach() for i in (0, 2) for n in ("weight", "bias")})
    for index, state in enumerate(states):
        torch.save(prefixed("module.", state) if index == 2 else state, tmp_path / f"{index}.pt")
    paths = [tmp_path / f"{index}.pt" for index in range(3)]
    assert merge(*paths, "--merge", "uniform", "--masks", "union", "-o", tmp_path / "soup") == 0
    soup, masks = (load_tensors(tmp_path / "soup" / f"{name}.safetensors") for name in ("model", "masks"))
    expected = by_hand(effective, [1 / 3] * 3)
    assert close(dict(sorted(soup.items())), dict(sorted(expected.items())))
    for name, mask in masks.items():
        assert torch.equal(mask, kept[0][name] | kept[1][name] | kept[2][name])


def test_of_complex_tensors_both_parts_are_averaged(tmp_path: Path) -> None:
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append({"a.weight": torch.randn(4, 3, dtype=torch.complex64), "n": torch.tensor(seed)})
        torch.save(states[-1], tmp_path / f"{seed}.pt")
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    assert merge(*paths, "--merge", "uniform", "-o", tmp_path / "soup") == 0
    soup = load_tensors(tmp_path / "soup" / "model.safetensors")
    for part in ("real", "imag"):
        found, (a, b) = getattr(soup["a.weight"], part), (getattr(state["a.weight"], part) for state in states)
        torch.testing.assert_close(found, (a + b) / 2)
    assert int(soup["n"]) == 0
    bad = states[1] | {"a.weight": states[1]["a.weight"] * float("nan")}
    torch.save(bad, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"a\.weight is not finite"):
        compare_masks([open_saved_model("MODEL", paths[0]), open_saved_model("MODEL", tmp_path / "bad.pt")], ())


def test_tied_tensors_stay_tied_and_count_once(tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        model = torch.nn.ModuleDict({"embed": torch.nn.Linear(4, 6, bias=False), "out": torch.nn.Linear(4, 6)})
        model["out"].weight = model["embed"].weight
        torch.save(model.state_dict(), tmp_path / f"{seed}.pt")
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    assert merge(*paths, "--merge", "uniform", "--prune-again", "0.5", "-o", tmp_path / "soup") == 0
    soup = load_tensors(tmp_path / "soup" / "model.safetensors")
    assert torch.equal(soup["embed.weight"], soup["out.weight"])
    assert int((soup["out.weight"] == 0).sum()) == 12
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["prunable"] == 24
    states = [state_dict(path)["out.weight"] for path in paths]
    assert torch.allclose(soup["out.weight"], (states[0] + states[1]) / 2 * (soup["out.weight"] != 0))


def test_known_architectures_take_prefixed_files_and_a_prefixed_parent(tmp_path: Path, capsys: Capture) -> None:
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(timm.create_model("resnet18", num_classes=10, in_chans=1, **KWARGS).state_dict())
    torch.save(states[0], tmp_path / "0.pt")
    torch.save({"state_dict": prefixed("model.", states[1]) | {"loss.weight": torch.ones(3)}}, tmp_path / "1.pt")
    torch.save({"state_dict_ema": prefixed("module.", states[2])}, tmp_path / "2.pt")
    given = [*MODEL, "--parent", tmp_path / "2.pt", "-o", tmp_path / "soup"]
    assert merge(tmp_path / "0.pt", tmp_path / "1.pt", "--merge", "uniform", *given) == 0
    assert "not taken: loss.weight" in capsys.readouterr().out
    soup = load_tensors(tmp_path / "soup" / "model.safetensors")
    assert close(dict(sorted(soup.items())), dict(sorted(by_hand(states[:2], [0.5, 0.5]).items())))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-o NEW", "give the models"),
        ("A B", "-o must be given"),
        ("A B -o OLD", "OLD|exists already"),
        ("A missing -o NEW", "missing|nothing is there"),
        ("A MASK -o NEW", "zeros|A and MASK differ in |of 2,952 weights|--masks union"),
        ("A SHAPE -o NEW", "SHAPE|4.weight|(10, 287)|(10, 288)"),
        ("A DTYPE -o NEW", "DTYPE|0.weight|float16|float32"),
        ("A LACKS -o NEW", "LACKS lacks 4.bias"),
        ("A MORE -o NEW", "MORE has more"),
        ("A NAN -o NEW", "NAN|0.bias|not finite"),
        ("A CORRUPT -o NEW", "CORRUPT|damaged"),
        ("A TEXT -o NEW", "TEXT|damaged"),
        ("A EMPTY -o NEW", "EMPTY|damaged"),
        ("A PICKLE -o NEW", "PICKLE|plain state dict"),
        ("A LIST -o NEW", "LIST|state dict"),
        ("TIMM OTHER -o NEW", "resnet18|resnet26|one kind"),
        ("A B -o NEW --merge greedy", "greedy|--data.name"),
        ("A B -o NEW --merge none", "none|no more than 1"),
        ("A B -o NEW --merge grredy", "grredy"),
        ("A B -o NEW --prune-again 0.1", "--prune-again is 0.1|sparse already"),
        ("A B -o NEW --prune-again 1", "--prune-again is 1"),
        ("A A -o NEW --prune-again 0.99 --floor 40", "--floor 40|80 of the 2,952|--prune-again 0.99 leaves 30"),
        ("A A -o NEW --floor 4", "--floor|--prune-again"),
        ("A A -o NEW --prune-again 0.9 --floor=-4", "--floor is -4|1 or more"),
        ("FLAT FLAT -o NEW --prune-again 0.5", "--prune-again|no matrix"),
        ("A B -o NEW --masks unoin", "--masks|union"),
        ("A B -o NEW --model.name resnet18", "--model.name"),
        ("A B -o NEW --data.name digits", "--model.name"),
        ("A B -o NEW --epochs 3", "--epochs"),
        ("A B -o NEW --parent missing", "--parent missing"),
    ],
)
def test_what_cannot_be_merged_is_one_line(
    arguments: str, words: str, plain: list[Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = state_dict(plain[0])
    bad = {
        "A": good,
        "B": state_dict(plain[1]),
        "MASK": good | {"4.weight": torch.zeros(10, 288)},
        "SHAPE": good | {"4.weight": good["4.weight"][:, :287]},
        "DTYPE": good | {"0.weight": good["0.weight"].half()},
        "LACKS": {name: t for name, t in good.items() if name != "4.bias"},
        "MORE": good | {"more": torch.zeros(1)},
        "NAN": good | {"0.bias": torch.full((8,), float("nan"))},
        "PICKLE": {"model": Path("x"), "run": print},
        "LIST": [good],
        "FLAT": {"w1": torch.ones(3)},
    }
    for name, value in bad.items():
        torch.save(value, name)
    save_tensors(Path("whole"), good)
    Path("CORRUPT").write_bytes(Path("whole").read_bytes()[:-100])
    Path("TEXT").write_text("not a model")
    Path("EMPTY").write_bytes(b"")
    Path("OLD").mkdir()
    (Path("OLD") / "file").touch()
    for name, kind in (("TIMM", "resnet18"), ("OTHER", "resnet26")) if "TIMM" in arguments else ():
        model = timm.create_model(kind, num_classes=3, **KWARGS)
        timm.models.save_for_hf(model, name, model_args=KWARGS, safe_serialization=True)
    assert merge(*arguments.split()) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert all(word in err for word in words.split("|")), err
    assert not Path("NEW").exists()


# --- memory ------------------------------------------------------------------------------------------

# not ru_maxrss, which a process takes over from the one that started it
MEASURED = """
import re, sys
from pathlib import Path
from sparsekit.cli.main import main
code = main(sys.argv[1:])
print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
sys.exit(code)
"""


@pytest.mark.slow
def test_ten_models_are_merged_in_the_memory_of_two(tmp_path: Path) -> None:
    def write(name: str, width: int, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(width, width, generator=torch.Generator().manual_seed(0)) < 0.1
        layers = {f"{i}.weight": (torch.rand(width, width, generator=generator) + 0.5) * kept for i in range(24)}
        save_tensors(tmp_path / name, layers)
        return tmp_path / name

    def peak(files: list[Path], out: str) -> int:
        command = [sys.executable, "-c", MEASURED, "merge", *map(str, files), "-o", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        return int(done.stdout.split()[-1])

    small = [write(f"s{i}", 16, i) for i in range(2)]
    large = [write(f"l{i}", 1800, i) for i in range(3)]
    size = large[0].stat().st_size
    base = peak(small, "small")
    many = peak([large[i % 3] for i in range(10)], "large")
    print(
        f"{size / 1e6:.0f} MB a model; {base / 1e6:.0f} MB without, {many / 1e6:.0f} MB with ten: "
        f"{(many - base) / size:.2f} models"
    )
    assert size > 300e6
    assert many - base < 2 * size


def test_a_model_that_is_given_twice_is_told(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    assert merge(runs[0], runs[1], runs[0] / "model", "-o", tmp_path / "soup") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "given before" in line)
    assert str(runs[0] / "model") in line
