"""Every file under `configs`: its options are options, and its header says of it what is true."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_loader
from timm.optim import list_optimizers

from sparsekit.cli import main
from sparsekit.config import parser as options
from sparsekit.config.checks import check
from sparsekit.config.options import FitConfig, describe, flatten
from sparsekit.models import cifar
from sparsekit.models.create import DEFAULT_NAME, resolve_model
from sparsekit.planning.plan import make_stages
from sparsekit.pruning.masks import prunable_names
from sparsekit.sweep import spec
from sparsekit.training.ranks import Ranks
from sparsekit.training.team import make_team

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]
SWEEPS = sorted(path for name in ("sweeps", "studies") for path in (ROOT / "configs" / name).rglob("*.y*ml"))
RUNS = sorted(set((ROOT / "configs").rglob("*.y*ml")) - set(SWEEPS))
CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10, "imagefolder": 1000}
ALL = sorted(path.relative_to(ROOT).as_posix() for path in (*SWEEPS, *RUNS))

each_run = pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
each_sweep = pytest.mark.parametrize("file", SWEEPS, ids=lambda file: f"{file.parent.name}-{file.stem}")


def header(file: Path) -> list[str]:
    """The comment at the top, a line that a backslash ends joined with the next."""
    lines = file.read_text("utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return re.sub(r" \\\n *", " ", "\n".join(line.removeprefix("#").strip() for line in lines[:end])).splitlines()


@cache
def parser() -> options.OptionParser:
    return options.build("sparsekit fit", "about")


@cache
def parsed(*arguments: str) -> FitConfig:
    return options.parse(parser(), arguments)


def commands(file: Path) -> list[tuple[str, list[str]]]:
    """What stands before `sparsekit fit` on a line of the header, and the options behind it."""
    lines = [line.rpartition("sparsekit fit ") for line in header(file) if "sparsekit fit " in line]
    own = file.relative_to(ROOT).as_posix()
    return [(before, shlex.split(after.replace("…", own))) for before, _, after in lines]


# --- configs of one run ------------------------------------------------------------------------------


@each_run
def test_the_cost_in_a_header_is_what_plan_prints(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["plan", "--config", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (printed,) = [line for line in out.splitlines() if line.startswith("replica-epochs: ")]
    (quoted,) = [line for line in header(file) if "replica-epochs" in line]
    assert quoted == f"sparsekit plan says: {printed}"


@each_run
def test_a_name_and_a_header_say_what_the_options_are(file: Path) -> None:
    config = parsed("--config", str(file))
    flat = flatten(describe(config))
    first = header(file)[0]
    data, *rest = re.split(r"_(?!mnist)", file.stem)
    assert config.data.name == {"imagenet": "imagefolder"}.get(data, data)
    for word in rest:
        if named := re.fullmatch(r"(gmp|imp|bimp)(\d+)", word):
            assert flat["method"] == named[1]
            assert config.sparsity == int(named[2]) / 100
            assert f"{named[2]} %" in first
            assert named[1].upper() in first
        if soup := re.fullmatch(r"soup(\d+)", word):
            assert config.replicas.count == int(soup[1])
            assert flat["merge"] in ("uniform", "greedy")
            assert f" of {['', '', 'two', 'three', 'four', 'five'][config.replicas.count]}" in first
        if word == "dense":
            assert config.sparsity == 0.0
    if config.model.name is not None:
        short = rest[0] if rest[0] not in ("wrn28", "vit", "convnext") else f"{rest[0]}_{rest[1]}"
        assert config.model.name.replace("cifar_", "").startswith(short)


@each_run
def test_every_command_in_a_header_is_one(file: Path) -> None:
    found = commands(file)
    own = file.relative_to(ROOT).as_posix()
    assert any(own in arguments for _, arguments in found)
    for launcher, arguments in found:
        place = arguments.index("--config") + 1
        arguments[place] = str(ROOT / arguments[place])
        config = parsed(*arguments)
        check(config)
        assert config.data.root is not None
        if "torchrun" not in launcher:
            continue
        numbers = {name: int(value) for name, value in re.findall(r"--(nnodes|nproc-per-node) (\d+)", launcher)}
        ranks = numbers.get("nnodes", 1) * numbers["nproc-per-node"]
        team = make_team(Ranks(0, ranks), config.replicas.count, config.data.batch_size, False, torch.device("cpu"))
        assert team.count * team.size == ranks
        assert team.count == config.replicas.count


@each_run
def test_timm_knows_what_a_config_names(file: Path) -> None:
    config = parsed("--config", str(file))
    name, kwargs = resolve_model(config.model) if config.model.init is None else (DEFAULT_NAME, {})
    assert timm.is_model(name)
    channels = 1 if config.data.name == "fashion_mnist" else 3
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=CLASSES[config.data.name], in_chans=channels, **kwargs)
    whole, left = prunable_names(model), prunable_names(model, config.masks.exclude)
    assert bool(config.masks.exclude) == (len(left) < len(whole))
    assert config.optimizer.name in list_optimizers()
    assert set(config.data.kwargs) <= set(create_loader.__annotations__)
    assert len(make_stages(config)) > 2 or config.sparsity == 0.0


def test_cifars_networks_are_used_on_cifar_alone() -> None:
    """Without max-pooling they are dear on large images; timm's own are poor on small ones."""
    used = set()
    for file in RUNS:
        config = parsed("--config", str(file))
        if config.data.name.startswith("cifar"):
            used.add(config.model.name)
        else:
            assert not (config.model.name or "").startswith("cifar_")
    assert used == set(cifar.default_cfgs)


# --- sweeps and studies ------------------------------------------------------------------------------


@each_sweep
def test_a_sweep_file_gives_runs_that_fit_takes(file: Path, tmp_path: Path) -> None:
    found = spec.read(file)
    cells = found.cells(20 if found.method == "random" else None)
    seen: set[str] = set()
    for cell in cells:
        values = {f"{name}={value!r}" for name, value in cell.values.items()}
        if values <= seen:
            continue  # each value once is enough: a parse is some milliseconds, a study has hundreds of runs
        seen |= values
        config = parsed(*found.options(cell))
        flat = flatten(describe(config))
        assert {name: flat[name] for name in cell.values} == dict(cell.values)
        assert make_stages(config)
        assert str(tmp_path) in found.arguments(cell, tmp_path)
    if counted := re.search(r"(\d+) runs\.", " ".join(header(file))):
        assert found.method == "grid"
        assert len(cells) == int(counted[1])


def test_what_is_named_of_these_files_is_there() -> None:
    """In the files themselves, the README and the documentation."""
    texts = [*SWEEPS, *RUNS, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for text in texts:
        for named in re.findall(r"\bconfigs/[\w./-]+?\.ya?ml\b", text.read_text("utf-8")):
            assert named in ALL, f"{text.name} names {named}"
    assert len(ALL) > 20
