"""Bad input: one or two lines that name the option and the fix, exit code 2, and nothing left behind.

One table. Each row: a command, arguments that are wrong, what the error must say, and a twin that is right.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from image_files import pickled, publish, write_cifar

from sparsekit.cli import main as cli

Capture = pytest.CaptureFixture[str]

LOL = "a0: &a0 [" + "lol," * 9 + "]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))
YAMLS = {
    "good": "method: {name: imp, cycles: 2}\nsparsity: 0.5",
    "broken": "sparsity: [0.5",
    "list": "- sparsity",
    "nothing": "# nothing yet",
    "option": "sparsty: 0.5",
    "nested": "replicas: {cout: 2}",
    "group": "replicas: 3",
    "plugin": "method: oneshoot",
    "own": "method: {name: imp, cycels: 2}",
    "number": "method: 3",
    "names": "method: [gmp]",
    "data_names": "data: {name: [digits]}",
    "nan": "sparsity: .nan",
    "empty_value": "sparsity:",
    "empty_group": "replicas:",
    "twice": "sparsity: 0.5\nepochs: 6\nsparsity: 0.9",
    "documents": "sparsity: 0.5\n---\nepochs: 6",
    "tab": "replicas:\n\tcount: 2",
    "no_name": "3: 4",
    "no_name_in_group": "replicas: {3: 4}",
    "pair": "? [sparsity, epochs]\n: 0.5",
    "nul": "sparsity: 0.5\0",
    "digits": f"epochs: 1{'0' * 5000}",
    "date": "sparsity: 2020-01-01",
    "binary": "sparsity: !!binary aGVsbG8=",
    "laughs": LOL,
    "nested_laughs": "model:\n  kwargs:\n" + "".join(f"    {line}\n" for line in LOL.splitlines()),
    "merged_laughs": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1},' * 9}]}}\n" for i in range(1, 12)),
    "deep": "model: " + "[" * 100_000,
    "deep_mapping": "model: {kwargs: " + "{a: " * 20_000,
    "circle": "model: {kwargs: &a {x: *a}}",
    "long": "masks: {exclude: [" + "x, " * 400_000 + "]}",
    "another": "config: good.yaml",
    "unnamed": "method: {name: ''}",
    "two_names": "method: {name: imp, class_path: os.system}",
    "null_option": "method: {name: gmp, start: null}",
    "imp": "method: imp",
    "local": "model: {name: 'local-dir:empty'}",
    "os_method": "method: {class_path: os.system, init_args: {command: touch RAN}}",
    "os_merge": "merge: os.system",
    "os_name": "merge: {name: os.system, command: touch RAN}",
    "os_model": "model: {class_path: os.system, init_args: {command: touch RAN}}",
    "os_optimizer": "optimizer: {class_path: os.system}",
    "os_number": "sparsity: {class_path: os.system, init_args: {command: touch RAN}}",
    "os_option": "method: {name: gmp, start: {class_path: os.system, init_args: {command: touch RAN}}}",
    "os_kwargs": "model: {kwargs: {class_path: os.system, init_args: {command: touch RAN}}}",
    "os_top": "class_path: os.system\ninit_args: {command: touch RAN}",
    "os_tag": "sparsity: !!python/object/apply:os.system ['touch RAN']",
    "os_other": "data: {class_path: sparsekit.config.options.DataConfig}",
}


def idx(values: bytes, *sizes: int) -> bytes:
    """An idx file of bytes, as MNIST's are."""
    return struct.pack(">BBBB", 0, 0, 8, len(sizes)) + b"".join(struct.pack(">I", size) for size in sizes) + values


TRAIN, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
LABELS = bytes(i % 10 for i in range(400))
GOOD = {
    TRAIN: idx(bytes(i % 251 for i in range(400 * 64)), 400, 8, 8),
    TRAIN_LABELS: idx(LABELS, 400),
    TEST: idx(bytes(i % 251 for i in range(50 * 64)), 50, 8, 8),
    TEST_LABELS: idx(LABELS[:50], 50),
}
# of each data set, what is wrong with it; None takes a file away
SETS: dict[str, dict[str, bytes | None]] = {
    "idx-good": {},
    "idx-gz": {TRAIN: None, f"{TRAIN}.gz": gzip.compress(GOOD[TRAIN])},
    "idx-cut": {TRAIN: GOOD[TRAIN][:-7]},
    "idx-header": {TRAIN: GOOD[TRAIN][:9]},
    "idx-none": {TEST_LABELS: b""},
    "idx-long": {TRAIN_LABELS: GOOD[TRAIN_LABELS] + b"\0"},
    "idx-gz-cut": {TRAIN: None, f"{TRAIN}.gz": gzip.compress(GOOD[TRAIN])[:-9]},
    "idx-gz-not": {TRAIN: None, f"{TRAIN}.gz": GOOD[TRAIN]},
    "idx-magic": {TRAIN: GOOD[TRAIN_LABELS]},
    "idx-label": {TRAIN_LABELS: idx(LABELS[:-1] + b"\x0a", 400)},
    "idx-fewer": {TRAIN_LABELS: idx(LABELS[:-1], 399)},
    "idx-oblong": {TRAIN: idx(bytes(400 * 64), 400, 4, 16)},
    "idx-sizes": {TEST: idx(bytes(50 * 81), 50, 9, 9)},
    "idx-giant": {TRAIN: idx(b"", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)},
    "idx-lacks": {TEST: None},
}


def write_sets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets, as folders."""
    for name, changes in SETS.items():
        for file, data in (GOOD | changes).items():
            if data is not None:
                (folder / name).mkdir(exist_ok=True)
                (folder / name / file).write_bytes(data)
    write_cifar(folder / "cifar-good", 10, 100, pickled(4))
    publish(monkeypatch, folder / "cifar-good", 10)
    for name in ("cifar-cut", "cifar-lacks"):
        shutil.copytree(folder / "cifar-good", folder / name)
    (folder / "cifar-cut" / "data_batch_3").write_bytes((folder / "cifar-good" / "data_batch_3").read_bytes()[:-1])
    (folder / "cifar-lacks" / "batches.meta").unlink()
    shutil.copytree(folder / "idx-good", folder / "idx-folder")
    (folder / "idx-folder" / TRAIN).unlink()
    (folder / "idx-folder" / TRAIN).mkdir()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("input")
    (folder / "file").write_text("not a folder")
    (folder / "full").mkdir()
    (folder / "full" / "kept").write_text("precious")
    (folder / "empty").mkdir()
    for name, text in YAMLS.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "latin.yaml").write_bytes("project: café".encode("latin-1"))
    (folder / "wide.yaml").write_bytes("sparsity: 0.5".encode("utf-16"))
    os.mkfifo(folder / "pipe.yaml")
    with pytest.MonkeyPatch.context() as patch:
        write_sets(folder, patch)
        yield folder


@pytest.fixture(autouse=True)
def _there(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever appears in this folder was made by a command."""
    monkeypatch.chdir(prepared)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    stats = {str(path): path.stat() for path in sorted(folder.rglob("*"))}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def hold_to_the_rules(code: int, out: str, err: str, words: list[str]) -> None:
    """What every refusal is like."""
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("sparsekit: error: ")
    assert len(err.splitlines()) <= 2
    assert len(err) < 600, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    leaks = ("<class", "<function", "object at 0x", "Parser key", "functools", "jsonargparse", "init_args", "typing.")
    given = " ".join(text for text in YAMLS.values())
    assert not any(leak in err and leak not in given for leak in leaks), err


Row = tuple[str, str, str, str]  # command, bad arguments, what the error must hold (parts split by |), good arguments


def rows(command: str, *cases: tuple[str, str, str]) -> list[Row]:
    return [(command, *case) for case in cases]


PLAN = rows(
    "plan",
    # plugins
    ("--method oneshoot", "--method|'oneshoot'|'oneshot'|gmp", "--method oneshot"),
    ("--merge unifrom", "--merge|'unifrom'|'uniform'|greedy", "--merge uniform"),
    ("--method uniform", "--method|'uniform'|gmp", "--merge uniform"),
    ("--method os.system", "--method|'os.system'|plugins list", "--method sparsekit.methods.imp.IMP"),
    ("--method nowhere.to.be.Found", "--method|'nowhere.to.be.Found'|plugins list", "--method imp"),
    ("--method", "--method needs a value", "--method imp"),
    ("--method=", "--method|plugins list", "--method=imp"),
    ("--method.help oneshoot", "--method|'oneshoot'|'oneshot'", "--method.help oneshot"),
    ("--method.help", "--method.help|gmp", "--method.help gmp"),
    # names of options
    ("--sparsty 0.5", "--sparsty|'--sparsity'", "--sparsity 0.5"),
    ("--epoch 12", "--epoch|'--epochs'", "--epochs 12"),
    ("--modle.name x", "--modle.name|'--model.name'", "--model.name x"),
    ("--replicas.cout 2", "--replicas.cout|'--replicas.count'", "--replicas.count 2"),
    ("--method gpm", "--method 'gpm'|mean 'gmp'?", "--method gmp"),
    ("--method.strat 0.2", "--method.strat|'--method.start'", "--method.start 0.2"),
    ("--method imp --method.start 0.2", "--method.start", "--method imp --method.dense 0.2"),
    ("--merge greedy --merge.steps 3", "--merge.steps", "--merge greedy"),
    ("--method.cycles 3", "--method.cycles is no option of method 'gmp'|bimp|imp|add --method ",
     "--method imp --method.cycles 3"),
    ("sparsity=0.5", "'sparsity'|--name value", "--sparsity=0.5"),
    # sparsity and epochs
    ("--sparsity 1", "--sparsity|1.0|0 to below 1", "--sparsity 0.999"),
    ("--sparsity 90", "--sparsity|90|0 to below 1", "--sparsity 0"),
    ("--sparsity -0.1", "--sparsity|-0.1|0 to below 1", "--sparsity 0.1"),
    ("--sparsity .nan", "--sparsity|nan|0 to below 1", "--sparsity 1e-05"),
    ("--sparsity nan", "--sparsity|'nan'|number", "--sparsity .5"),
    ("--sparsity 90%", "--sparsity|'90%'|number, such as 0.9", "--sparsity 9e-1"),
    ("--sparsity 95", "--sparsity|95|such as 0.95", "--sparsity 0.95"),
    ("--sparsity 1.5", "--sparsity|1.5|such as 0.9", "--sparsity 0.9"),
    ("--sparsity true", "--sparsity|number", "--sparsity 0.5"),
    ("--sparsity", "--sparsity needs a value", "--sparsity 0.5"),
    ("--epochs 0", "--epochs|0|1 or more", "--epochs 6"),
    ("--epochs -3", "--epochs|-3|1 or more", "--epochs 6"),
    ("--epochs 2.5", "--epochs|'2.5'|whole number", "--epochs 2"),
    ("--epochs ten", "--epochs|'ten'|whole number", "--epochs 10"),
    # replicas
    ("--replicas.count 0", "--replicas.count|0|1 to", "--replicas.count 1"),
    ("--replicas.count 1000000000000", "--replicas.count|1 to", "--replicas.count 10"),
    ("--replicas.count 2.5", "--replicas.count|'2.5'|whole number", "--replicas.count 2"),
    ("--replicas.vary sed", "--replicas.vary|'sed'|weight_decay|'seed'", "--replicas.vary seed"),
    ("--replicas.values [1,2] --replicas.count 3", "--replicas.values|2 values|--replicas.count 3",
     "--replicas.values [1,2] --replicas.count 2"),
    ("--replicas.values [1,1,2]", "--replicas.values|equal seeds|different", "--replicas.values [0,1,2]"),
    ("--replicas.values 1", "--replicas.values|'1'|list", "--replicas.values [1,2,3]"),
    ("--replicas.values [a,b,c]", "--replicas.values|'a'|number", "--replicas.values [3,2,1]"),
    ("--replicas.vary lr --replicas.values [0.1,0,0.2]", "--replicas.values|0|--replicas.vary lr|above 0",
     "--replicas.vary lr --replicas.values [0.1,0.15,0.2]"),
    ("--replicas.vary lr --replicas.values [0.1,.inf,0.2]", "--replicas.values|inf|--replicas.vary lr",
     "--replicas.vary lr --replicas.values [0.1,0.1,0.1]"),
    ("--replicas.vary label_smoothin", "--replicas.vary|'label_smoothing'", "--replicas.vary label_smoothing"),
    ("--replicas.vary label_smoothing --replicas.values [0,0.5,1]", "--replicas.values|1|below 1",
     "--replicas.vary label_smoothing --replicas.values [0,0.5,0.9]"),
    ("--replicas.vary augment --replicas.values [0,1,5]", "--replicas.values|5|0 to 4",
     "--replicas.vary augment --replicas.values [0,1,4]"),
    ("--replicas.vary augment --data.augment false", "--replicas.vary augment|--data.augment",
     "--replicas.vary augment --data.augment true"),
    ("--method str --replicas.vary method.strengt --replicas.values [1,2,3]", "'strengt'|'method.strength'",
     "--method str --replicas.vary method.strength --replicas.values [1,2,3]"),
    ("--method str --replicas.vary method.strength", "method.strength|--replicas.values",
     "--method=str --replicas.vary=method.strength --replicas.values=[1,2,3]"),
    ("--method str --replicas.vary method.strength --replicas.values [1,2,-3]", "--replicas.values|-3|method.strength",
     "--replicas.values [1,2,3] --replicas.vary method.strength --method str"),
    ("--method str --replicas.vary method.search --replicas.values [0.5,0.6,0.7]", "method.search|plan|sweep",
     "--method str --replicas.vary method.strength --replicas.values [0.5,0.6,0.7]"),
    ("--replicas.vary method.start --replicas.values [0,0.1,0.2]", "method.start|segments|plan|sweep",
     "--replicas.vary lr --replicas.values [0.1,0.2,0.3]"),
    ("--data.augment_strength 5", "--data.augment_strength|5.0|0 (none) to 4", "--data.augment_strength 4"),
    ("--data.augment false --data.augment_strength 2", "--data.augment_strength is 2|--data.augment is false",
     "--data.augment false --data.augment_strength 1"),
    ("--replicas.start 1", "--replicas.start|1.0|below 1", "--replicas.start 0.5"),
    ("--replicas.start .nan", "--replicas.start|nan|below 1", "--replicas.start 0"),
    ("--replicas x", "--replicas|'x'|--replicas.NAME VALUE.", "--replicas.count 2"),
    ("--data /data/cifar", "--data|group of options|mean --data.root /data/cifar?", "--data.root /data/cifar"),
    ("--model ~/m", "--model|group of options|mean --model.init ~/m?", "--model.init ~/m"),
    ("--model=nowhere.yaml", "--model|'nowhere.yaml'|no file of options", "--model.name resnet18"),
    ("--model resnet18.a1_in1k", "--model|group of options|mean --model.name resnet18.a1_in1k?",
     "--model.name resnet18.a1_in1k"),
    ("--model it's", "--model|it's|group of options|--model.NAME VALUE.", "--model.name resnet10t"),
    ("--replicas 3", "--replicas|3|group of options|--replicas.count 3", '--replicas {"count":3}'),
    ("--model resnet18", "--model|'resnet18'|--model.name resnet18", "--model.name resnet18"),
    ("--checkpoint runs/x", "--checkpoint|'runs/x'|--checkpoint.NAME VALUE", "--checkpoint.minutes 1"),
    # the plugins' own options
    ("--method.start 0.9", "--method.end|0.7|--method.start (0.9)", "--method.start 0.6"),
    ("--method.start .nan", "--method.start|nan|fraction", "--method.start 0"),
    ("--method.interval 1e-9", "--method.interval|1e-09|fraction", "--method.interval 0.05"),
    ("--method.interval often", "--method.interval|'often'|number", "--method.interval 0.5"),
    ("--method imp --method.cycles 0", "--method.cycles|0|1 to", "--method imp --method.cycles 1"),
    ("--method imp --method.cycles 1.5", "--method.cycles|'1.5'|whole number", "--method imp --method.cycles 5"),
    ("--method imp --method.retrain lrr", "--method.retrain|'lrr'|allr|'slr'", "--method imp --method.retrain slr"),
    ("--method imp --method.retrain lrw --method.dense 0.1", "--method.retrain|raise --method.dense",
     "--method imp --method.retrain lrw --method.dense 0.3"),
    ("--method imp --method.retrain ft --optimizer.min_lr 0", "--method.retrain ft|is 0|raise --optimizer.min_lr|llr",
     "--method imp --method.retrain ft --optimizer.min_lr 0.001"),
    ("--method bimp --method.retrain ft", "--method.retrain ft|is 0|choose lrw, slr, clr, llr or allr",
     "--method bimp --method.retrain clr"),
    # the rest
    ("--optimizer.lr 0", "--optimizer.lr|0.0|above 0", "--optimizer.lr 1e-05"),
    ("--optimizer.lr .inf", "--optimizer.lr|inf|above 0", "--optimizer.lr 10"),
    ("--optimizer.momentum 1", "--optimizer.momentum|1.0|below 1", "--optimizer.momentum 0.99"),
    ("--optimizer.weight_decay -1", "--optimizer.weight_decay|-1.0|0 or more", "--optimizer.weight_decay 0"),
    ("--optimizer.warmup 1", "--optimizer.warmup|1.0|below 1", "--optimizer.warmup 0"),
    ("--optimizer.min_lr 2", "--optimizer.min_lr|2.0|0 to 1", "--optimizer.min_lr 1"),
    ("--optimizer.clip_norm 0", "--optimizer.clip_norm|0.0|above 0", "--optimizer.clip_norm null"),
    ("--optimizer.schedule cos", "--optimizer.schedule|'cos'|linear|'cosine'", "--optimizer.schedule cosine"),
    ("--optimizer.schedule os:system", "--optimizer.schedule os:system|Python's own", "--optimizer.schedule linear"),
    ("--optimizer.kwargs [1]", "--optimizer.kwargs|mapping", "--optimizer.kwargs {}"),
    ("--data.name cifar01", "--data.name|'cifar01'|mnist|'cifar10'", "--data.name cifar10"),
    ("--data.batch_size 0", "--data.batch_size|0|1 or more", "--data.batch_size 1"),
    ("--data.held_out 1", "--data.held_out|1.0|below 1", "--data.held_out 0.5"),
    ("--data.image_size 3", "--data.image_size|3|4 pixels", "--data.image_size 4"),
    ("--data.augment maybe", "--data.augment|'maybe'|true or false", "--data.augment false"),
    ("--masks.allocation erdos", "--masks.allocation|'erdos'|choose from global, uniform", "--masks.allocation erk"),
    ("--masks.allocation nothing_here:mine", "--masks.allocation nothing_here:mine|cannot be imported|PYTHONPATH",
     "--masks.allocation lamp"),
    ("--masks.exclude conv1", "--masks.exclude|'conv1'|list", "--masks.exclude [conv1]"),
    ("--masks.exclude ['(']", "--masks.exclude|'('|regular expression", "--masks.exclude ['[(]']"),
    ("--model.kwargs 3", "--model.kwargs|'3'|mapping", '--model.kwargs {"a":3}'),
    ("--model.kwargs {layers:3}", "--model.kwargs|'layers:3'|space", '--model.kwargs {"layers":3}'),
    ("--label_smoothing 1", "--label_smoothing|1.0|below 1", "--label_smoothing 0.1"),
    ("--channels_last maybe", "--channels_last|'maybe'|true or false", "--channels_last false"),
    ("--device gpu", "--device|gpu|cuda:N", "--device cuda:3"),
    ("--precision fp17", "--precision|'fp17'|bf16", "--precision bf16"),
    ("--seed -1", "--seed|-1|0 or more", "--seed 0"),
    ("--seed 1.5", "--seed|'1.5'|whole number", "--seed 15"),
    ("--wandb.mode off", "--wandb.mode|'off'|disabled|'offline'", "--wandb.mode disabled"),
    # files
    ("--config nowhere.yaml", "--config|nowhere.yaml|not exist", "--config good.yaml"),
    ("--config", "--config", "--config good.yaml"),
    ("--config broken.yaml", "--config|broken.yaml|line 1", "--config good.yaml"),
    ("--config latin.yaml", "--config|latin.yaml|save it as UTF-8", "--config good.yaml"),
    ("--config list.yaml", "--config|list.yaml", "--config good.yaml"),
    ("--config nothing.yaml", "--config|nothing.yaml", "--config good.yaml"),
    ("--config empty", "--config|empty", "--config good.yaml"),
    ("--config option.yaml", "--sparsty|'--sparsity'|(in option.yaml)", "--config good.yaml"),
    ("--config nested.yaml", "--replicas.cout|'--replicas.count'", "--config good.yaml"),
    ("--config group.yaml", "--replicas|3|group of options|--replicas.count 3", "--config good.yaml"),
    ("--config plugin.yaml", "--method|'oneshoot'|'oneshot'", "--config good.yaml"),
    ("--config own.yaml", "--method.cycels|'--method.cycles'", "--config good.yaml"),
    ("--config number.yaml", "--method|'3'|plugins list", "--config good.yaml"),
    ("--config names.yaml", "--method|gmp|plugins list", "--config good.yaml"),
    ("--config data_names.yaml", "--data.name|digits|plugins list", "--config good.yaml"),
    ("--config nan.yaml", "--sparsity|nan|0 to below 1", "--config good.yaml"),
    ("--config pipe.yaml", "--config|pipe.yaml|is no file", "--config good.yaml"),
    ("--config=", "--config|is no file", "--config good.yaml"),
    ("--config file/x.yaml", "--config|file/x.yaml", "--config good.yaml"),
    ("--config wide.yaml", "--config|wide.yaml|save it as UTF-8", "--config good.yaml"),
    ("--config empty_value.yaml", "--sparsity has no value|(in empty_value.yaml)", "--config good.yaml"),
    ("--config empty_group.yaml", "--replicas has no value|(in empty_group.yaml)", "--config good.yaml"),
    ("--config twice.yaml", "--config twice.yaml, line 3|'sparsity' twice", "--config good.yaml"),
    ("--config documents.yaml", "--config documents.yaml, line 2|another document", "--config good.yaml"),
    ("--config tab.yaml", "--config tab.yaml, line 2|cannot start", "--config good.yaml"),
    ("--config no_name.yaml", "--config no_name.yaml|3 is no option", "--config good.yaml"),
    ("--config no_name_in_group.yaml", "unknown option --replicas.3", "--config good.yaml"),
    ("--config pair.yaml", "--config pair.yaml, line 1|no name", "--config good.yaml"),
    ("--config nul.yaml", "--config nul.yaml|#x0000", "--config good.yaml"),
    ("--config digits.yaml", "--config digits.yaml, line 1|5001 digits", "--config good.yaml"),
    ("--config date.yaml", "--sparsity is '2020-01-01'|number|(in date.yaml)", "--config good.yaml"),
    ("--config binary.yaml", "--sparsity|number|(in binary.yaml)", "--config good.yaml"),
    ("--config laughs.yaml", "--config laughs.yaml, line 2|alias|write it out", "--config good.yaml"),
    ("--config nested_laughs.yaml", "--config nested_laughs.yaml, line 4|alias", "--config good.yaml"),
    ("--config merged_laughs.yaml", "--config merged_laughs.yaml, line 2|alias", "--config good.yaml"),
    ("--config deep.yaml", "--config deep.yaml|levels", "--config good.yaml"),
    ("--config deep_mapping.yaml", "--config deep_mapping.yaml|levels", "--config good.yaml"),
    ("--config circle.yaml", "--config circle.yaml|alias", "--config good.yaml"),
    ("--config long.yaml", "--config long.yaml|1,048,576 bytes", "--config good.yaml"),
    ("--config another.yaml", "--config cannot stand in a config file", "--config good.yaml"),
    ("--config unnamed.yaml", "--method|give its name|plugins list|(in unnamed.yaml)", "--config good.yaml"),
    ("--config two_names.yaml", "unknown option --method.class_path|(in two_names.yaml)", "--config good.yaml"),
    ("--config null_option.yaml", "--method.start has no value|(in null_option.yaml)", "--config good.yaml"),
    ("--config os_method.yaml", "--method 'os.system' is no installed plugin|plugins list", "--config good.yaml"),
    ("--config os_merge.yaml", "--merge 'os.system' is no installed plugin|plugins list", "--config good.yaml"),
    ("--config os_name.yaml", "--merge 'os.system' is no installed plugin|plugins list", "--config good.yaml"),
    ("--config os_model.yaml", "unknown option --model.class_path", "--config good.yaml"),
    ("--config os_optimizer.yaml", "unknown option --optimizer.class_path", "--config good.yaml"),
    ("--config os_number.yaml", "--sparsity|number|(in os_number.yaml)", "--config good.yaml"),
    ("--config os_option.yaml", "--method.start|number|(in os_option.yaml)", "--config good.yaml"),
    ("--config os_top.yaml", "unknown option --class_path|(in os_top.yaml)", "--config good.yaml"),
    ("--config os_tag.yaml", "--config os_tag.yaml, line 1|os.system|tags are not read", "--config good.yaml"),
    ("--config os_other.yaml", "unknown option --data.class_path", "--config good.yaml"),
    ('--model {"class_path":"os.system"}', "unknown option --model.class_path", '--model {"pretrained":false}'),
    ("--model.class_path os.system", "unknown option --model.class_path", "--model.name x"),
    ("--method.class_path os.system", "--method 'os.system'|plugins list", "--method imp"),
    # whose option, and where
    ("--method.start.", "'--method.start.' is no option", "--method.start 0.2"),
    ("--method. 3", "'--method.' is no option", "--method.start 0.2"),
    ("--method.start", "--method.start needs a value", "--method.start 0.2"),
    ("--mehod.start 0.2", "--mehod.start|'--method.start'", "--method.start 0.2"),
    ("--merge.momentum 0.8", "--merge.momentum|'uniform' has no options of its own", "--optimizer.momentum 0.8"),
    ("--method imp --method.strt 1", "--method.strt|--method.dense, --method.cycles", "--method imp --method.cycles 1"),
    ("--lr 3", "--lr|'--optimizer.lr'", "--optimizer.lr 3"),
    ("--batch-size 3", "--batch-size|'--data.batch_size'", "--data.batch_size 3"),
    ("--method.cycles 2 --config imp.yaml", "--method.cycles stands before|'imp'|put it behind",
     "--config imp.yaml --method.cycles 2"),
    ("--method.start 0.2 --config imp.yaml", "--method.start stands before|'imp'|put it behind",
     "--config imp.yaml --method gmp --method.start 0.2"),
    ("--help=3", "--help takes no value", "--help"),
    # the rest of what cannot be
    ("--out=", "--out is ''|directory", "--out new"),
    ("--data.held_out .nan", "--data.held_out|nan|fraction", "--data.held_out 0.2"),
    ("--checkpoint.minutes 0", "--checkpoint.minutes|0.0|above 0", "--checkpoint.minutes .inf"),
    ("--checkpoint.minutes .nan", "--checkpoint.minutes|nan|above 0", "--checkpoint.minutes 0.1"),
    ("--masks.pattern 4:2", "--masks.pattern|'4:2'|2:4", "--masks.pattern 2:4"),
    ("--masks.exclude [[1]]", "--masks.exclude|text", "--masks.exclude [1]"),
    ("--wandb {mode:x}", "--wandb", '--wandb {"mode":"offline"}'),
    ('--wandb {"mode":"x"}', "--wandb.mode is 'x'|choose from", '--wandb {"mode":"offline"}'),
    ("--resume=maybe", "--resume|'maybe'|true or false", "--resume=false"),
    ("--epochs", "--epochs needs a value", "--epochs 6"),
    ("--optimizer.lr .nan", "--optimizer.lr|nan|above 0", "--optimizer.lr 0.1"),
    ("--replicas.values []", "--replicas.values|0 values", "--replicas.values null"),
)  # fmt: skip

FIT = rows(
    "fit",
    ("--model.name resnet81", "--model.name|'resnet81'|'resnet18'", "--model.name resnet10t"),
    ("--model.name local-dir:empty", "--model.name|'local-dir:empty'|config.json", ""),
    ('--model.kwargs {"layrs":3}', "--model.kwargs|layrs", '--model.kwargs {"drop_rate":0.1}'),
    ('--model.kwargs {"layers":3}', "--model.kwargs|layers", '--model.kwargs {"layers":[1,1,1,1]}'),
    ('--model.kwargs {"num_classes":3}', "--model.kwargs|num_classes", ""),
    ("--model.name vit_tiny_patch16_224", "--model.name|16×16|--data.image_size|img_size",
     '--model.name vit_tiny_patch16_224 --model.kwargs {"img_size":16,"depth":1}'),
    ("--optimizer.name sgdd", "--optimizer.name|'sgdd'|'sgd'", "--optimizer.name adamw"),
    ('--optimizer.kwargs {"foo":1}', "--optimizer.kwargs|foo", '--optimizer.kwargs {"nesterov":false}'),
    ('--optimizer.kwargs {"lr":1}', "--optimizer.kwargs|lr", ""),
    ('--optimizer.name adamw --optimizer.kwargs {"betas":3}', "--optimizer.kwargs|betas",
     '--optimizer.name adamw --optimizer.kwargs {"betas":[0.9,0.99]}'),
    ("--masks.exclude [.]", "--masks.exclude|['.']|nothing to prune", "--masks.exclude [^conv1]"),
    ("--masks.exclude [layer9]", "--masks.exclude|'layer9'|'conv1.weight'", "--masks.exclude [layer4]"),
    ("--data.name mnist", "--data.root|mnist|train-images-idx3-ubyte", "--data.name digits"),
    ("--data.name mnist --data.root nowhere", "--data.root|'nowhere'|does not exist", ""),
    ("--data.name mnist --data.root file", "--data.root|'file'|not a folder", ""),
    ("--data.name cifar10 --data.root empty", "--data.root|'empty'|cifar10|data_batch_1", ""),
    ("--data.batch_size 401", "--data.batch_size|401|400", "--data.batch_size 100"),
    ("--data.batch_size 400 --epochs 1", "--epochs 1|too short|raise --epochs to 10|--data.batch_size",
     "--data.batch_size 400 --epochs 10"),
    ("--method.interval 0.001", "--epochs|too short|segment 2|fewer segments", "--method.interval 0.3"),
    ("--device cuda:99", "--device|cuda:99|auto or cpu", "--device cpu"),
    ("--out full", "--out|full|not empty|new directory", "--out empty"),
    ("--out file", "--out|file|new directory", "--out new"),
    # what plan refuses, fit refuses too
    ("--sparsity 1", "--sparsity|1.0|0 to below 1", ""),
    ("--method oneshoot", "--method|'oneshoot'|'oneshot'", ""),
    ("--replicas.values [1,2]", "--replicas.values|2 values|--replicas.count 3", ""),
    ("--method str --replicas.vary method.init --replicas.values [-5,-4,-3]", "method.init|tensors|sweep", ""),
    ("--method imp --method.retrain lrw --method.dense 0.1", "--method.retrain|--method.dense", ""),
    ("--data.name mnist --data.root idx-cut", "idx-cut/train-images|bytes of data|published",
     "--data.name mnist --data.root idx-good"),
    ("--data.name mnist --data.root idx-header", "--data.root|idx-header/train-images|sizes", ""),
    ("--data.name mnist --data.root idx-none", "--data.root|idx-none/t10k-labels|nothing", ""),
    ("--data.name mnist --data.root idx-long", "--data.root|idx-long/train-labels|401", ""),
    ("--data.name mnist --data.root idx-gz-cut", "--data.root|idx-gz-cut/train-images|.gz|cannot be read",
     "--data.name mnist --data.root idx-gz"),
    ("--data.name mnist --data.root idx-gz-not", "--data.root|.gz|cannot be read|gzip", ""),
    ("--data.name mnist --data.root idx-magic", "--data.root|train-images|starts with 00000801", ""),
    ("--data.name mnist --data.root idx-label", "--data.root|train-labels|label 10|0 to 9", ""),
    ("--data.name mnist --data.root idx-fewer", "--data.root|399 labels for 400 images", ""),
    ("--data.name mnist --data.root idx-oblong", "--data.root|4 x 16 pixels", ""),
    ("--data.name mnist --data.root idx-sizes", "--data.root|8 pixels a side|9", ""),
    ("--data.name mnist --data.root idx-giant", "--data.root|has 0 bytes of data", ""),
    ("--data.name mnist --data.root idx-lacks", "--data.root|idx-lacks|lacks t10k-images", ""),
    ("--data.name mnist --data.root idx-folder", "--data.root|idx-folder|lacks train-images", ""),
    ("--data.name cifar10 --data.root cifar-cut", "--data.root|cifar-cut/data_batch_3|MD5|published",
     "--data.name cifar10 --data.root cifar-good"),
    ("--data.name cifar10 --data.root cifar-lacks", "--data.root|cifar-lacks|lacks batches.meta", ""),
    ('--data.name cifar10 --data.root cifar-good --model.kwargs {"in_chans":1}', "--model.kwargs|in_chans", ""),
    ("--config local.yaml", "--model.name|'local-dir:empty'|config.json", "--config good.yaml"),
    ("--config os_kwargs.yaml", "--model.kwargs", "--config good.yaml"),
    ("--resume", "--resume needs --out", "--resume --out new"),
    ("--resume --out full", "--resume|full|holds no run", "--resume --out empty"),
    ("--method.start 0.9", "--method.end|0.7|--method.start (0.9)", ""),
)  # fmt: skip

CASES = PLAN + FIT
AS_PROCESSES = [
    "--sparsity 90", "--method os.system", "--method.start.", "--config broken.yaml", "--config latin.yaml",
    "--config laughs.yaml", "--config os_method.yaml", "--config option.yaml",
    "--data.name mnist --data.root idx-gz-cut", "--data.name mnist --data.root idx-label",
]  # fmt: skip


class Reached(BaseException):
    """A fit got past all checks."""


def reached(*_: object) -> NoReturn:
    raise Reached


@pytest.mark.parametrize(("command", "bad", "words", "good"), CASES, ids=[f"{row[0]} {row[1]}" for row in CASES])
def test_bad_input_is_refused_and_its_twin_is_not(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, bad: str, words: str, good: str
) -> None:
    before = files(Path())
    code = cli.main([command, *bad.split(" ")])
    hold_to_the_rules(code, *capsys.readouterr(), words.split("|"))
    assert files(Path()) == before
    if command == "plan":
        assert cli.main(["plan", *good.split(" ")]) == 0
        out, err = capsys.readouterr()
        assert out
        assert err == ""
    elif good:
        monkeypatch.setattr("sparsekit.run.directory.locked", reached)  # anything that gets here would be trained
        with pytest.raises(Reached):
            cli.main(["fit", "--device", "cpu", *good.split(" ")])
    assert files(Path()) == before


def test_the_table_is_as_long_as_it_is_said_to_be() -> None:
    assert len(CASES) == len({row[:2] for row in CASES}) == 231
    assert len(AS_PROCESSES) == 10
    assert set(AS_PROCESSES) <= {row[1] for row in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("bad", AS_PROCESSES)
def test_as_a_command_too(bad: str, tmp_path: Path) -> None:
    command, _, words, good = next(row for row in CASES if row[1] == bad)
    run: dict[str, Any] = {"capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    sparsekit = [sys.executable, "-m", "sparsekit", command]
    before = files(Path())
    done = subprocess.run([*sparsekit, *bad.split(" ")], **run)
    hold_to_the_rules(done.returncode, done.stdout, done.stderr, words.split("|"))
    assert files(Path()) == before
    small = ["--epochs", "3", "--model.kwargs", '{"channels":[4,4,4,4]}', "--wandb.mode", "disabled", "--merge", "none"]
    extra = ["--out", str(tmp_path / "out"), "--method", "oneshot", *small] if command == "fit" else []
    good = good or "--data.name mnist --data.root idx-good"
    done = subprocess.run([*sparsekit, *good.split(" "), *extra], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("bomb", ["laughs", "nested_laughs", "merged_laughs", "deep", "deep_mapping", "circle", "long"])
def test_a_yaml_bomb_costs_little(bomb: str) -> None:
    """Time and memory beside those of a config of one line; unchecked, they are gigabytes and minutes."""

    def cost(config: str) -> tuple[int, float, int]:
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "sparsekit", "plan", "--config", config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        return child.returncode, time.monotonic() - began, usage.ru_maxrss

    plain, bad = cost("good.yaml"), cost(f"{bomb}.yaml")
    assert (plain[0], bad[0]) == (0, 2)
    assert bad[1] < 3.0 * plain[1] + 5.0
    assert bad[2] < plain[2] + 64 * 1024  # kB


@pytest.mark.parametrize("out", ["file/run", "full/kept/run", "/proc/run"])
def test_an_out_that_cannot_be_made_is_bad_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.setattr("sparsekit.launch.run", reached)
    before = files(Path())
    code = cli.main(["fit", "--device", "cpu", "--out", out])
    hold_to_the_rules(code, *capsys.readouterr(), ["--out", out, "can be written"])
    assert files(Path()) == before
