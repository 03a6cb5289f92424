"""Bad input: one or two lines that name the option and the fix, exit code 2, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from sparsekit import cli
from sparsekit.errors import RunError, UserError

Capture = pytest.CaptureFixture[str]
Words = tuple[str, ...]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a case needs on disk; everything else that appears here was made by the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("precious")
    (tmp_path / "empty").mkdir()
    texts = {
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
        "nan": "sparsity: .nan",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "latin.yaml").write_bytes("project: café".encode("latin-1"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(capsys: Capture, arguments: Words, words: Words) -> None:
    """Run a command that must be refused, and hold what it says and leaves against the rules."""
    before = files(Path())
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("sparsekit: error: ")
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert not any(leak in err for leak in ("<class", "<function", "object at 0x", "Parser key", "functools")), err
    assert files(Path()) == before


def rows(*cases: tuple[str, str, str]) -> list[object]:
    """Bad arguments, what their error must hold (parts split by |), and good arguments beside them."""
    return [
        pytest.param(*(part.split(" ") for part in (bad, good)), words.split("|"), id=bad) for bad, words, good in cases
    ]


PLAN = rows(
    # plugins
    ("--method oneshoot", "--method|'oneshoot'|'oneshot'|gmp", "--method oneshot"),
    ("--merge unifrom", "--merge|'unifrom'|'uniform'|greedy", "--merge uniform"),
    ("--method uniform", "--method|'uniform'|gmp", "--merge uniform"),
    ("--method os.system", "--method|'os.system'|plugins list", "--method sparsekit.methods.imp.IMP"),
    ("--method nowhere.to.be.Found", "--method|'nowhere.to.be.Found'|plugins list", "--method imp"),
    ("--method", "--method|expected one argument", "--method imp"),
    ("--method=", "--method|plugins list", "--method=imp"),
    ("--method.help oneshoot", "--method|'oneshoot'|'oneshot'", "--method.help oneshot"),
    ("--method.help", "--method.help|gmp", "--method.help gmp"),
    # names of options
    ("--sparsty 0.5", "--sparsty|'--sparsity'", "--sparsity 0.5"),
    ("--epoch 12", "--epoch|'--epochs'", "--epochs 12"),
    ("--modle.name x", "--modle.name|'--model.name'", "--model.name x"),
    ("--replicas.cout 2", "--replicas.cout|'--replicas.count'", "--replicas.count 2"),
    ("--method.strat 0.2", "--method.strat|'--method.start'", "--method.start 0.2"),
    ("--method imp --method.start 0.2", "--method.start", "--method imp --method.dense 0.2"),
    ("--merge greedy --merge.steps 3", "--merge.steps", "--merge greedy"),
    ("sparsity=0.5", "'sparsity'|--name value", "--sparsity=0.5"),
    # sparsity and epochs
    ("--sparsity 1", "--sparsity|1.0|0 to below 1", "--sparsity 0.999"),
    ("--sparsity 90", "--sparsity|90|0 to below 1", "--sparsity 0"),
    ("--sparsity -0.1", "--sparsity|-0.1|0 to below 1", "--sparsity 0.1"),
    ("--sparsity .nan", "--sparsity|nan|0 to below 1", "--sparsity 1e-05"),
    ("--sparsity nan", "--sparsity|'nan'|number", "--sparsity .5"),
    ("--sparsity 90%", "--sparsity|'90%'|number", "--sparsity 9e-1"),
    ("--sparsity true", "--sparsity|number", "--sparsity 0.5"),
    ("--sparsity", "--sparsity|expected one argument", "--sparsity 0.5"),
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
    ("--replicas.start 1", "--replicas.start|1.0|below 1", "--replicas.start 0.5"),
    ("--replicas.start .nan", "--replicas.start|nan|below 1", "--replicas.start 0"),
    ("--replicas 3", "--replicas|'3'|mapping", '--replicas {"count":3}'),
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
    # the rest
    ("--optimizer.lr 0", "--optimizer.lr|0.0|above 0", "--optimizer.lr 1e-05"),
    ("--optimizer.lr .inf", "--optimizer.lr|inf|above 0", "--optimizer.lr 10"),
    ("--optimizer.momentum 1", "--optimizer.momentum|1.0|below 1", "--optimizer.momentum 0.99"),
    ("--optimizer.weight_decay -1", "--optimizer.weight_decay|-1.0|0 or more", "--optimizer.weight_decay 0"),
    ("--optimizer.warmup 1", "--optimizer.warmup|1.0|below 1", "--optimizer.warmup 0"),
    ("--optimizer.min_lr 2", "--optimizer.min_lr|2.0|0 to 1", "--optimizer.min_lr 1"),
    ("--optimizer.clip_norm 0", "--optimizer.clip_norm|0.0|above 0", "--optimizer.clip_norm null"),
    ("--optimizer.schedule cos", "--optimizer.schedule|'cos'|linear|'cosine'", "--optimizer.schedule cosine"),
    ("--optimizer.kwargs [1]", "--optimizer.kwargs|mapping", "--optimizer.kwargs {}"),
    ("--data.name cifar01", "--data.name|'cifar01'|mnist|'cifar10'", "--data.name cifar10"),
    ("--data.batch_size 0", "--data.batch_size|0|1 or more", "--data.batch_size 1"),
    ("--data.held_out 1", "--data.held_out|1.0|below 1", "--data.held_out 0.5"),
    ("--data.image_size 3", "--data.image_size|3|4 pixels", "--data.image_size 4"),
    ("--data.augment maybe", "--data.augment|'maybe'|true or false", "--data.augment false"),
    ("--masks.allocation erdos", "--masks.allocation|'erdos'|choose from global, uniform", "--masks.allocation erk"),
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
    ("--config latin.yaml", "--config|latin.yaml|UTF-8", "--config good.yaml"),
    ("--config list.yaml", "--config|list.yaml", "--config good.yaml"),
    ("--config nothing.yaml", "--config|nothing.yaml", "--config good.yaml"),
    ("--config empty", "--config|empty", "--config good.yaml"),
    ("--config option.yaml", "--sparsty|'--sparsity'", "--config good.yaml"),
    ("--config nested.yaml", "--replicas.cout|'--replicas.count'", "--config good.yaml"),
    ("--config group.yaml", "--replicas|3|mapping", "--config good.yaml"),
    ("--config plugin.yaml", "--method|'oneshoot'|'oneshot'", "--config good.yaml"),
    ("--config own.yaml", "--method.cycels|'--method.cycles'", "--config good.yaml"),
    ("--config number.yaml", "--method|'3'|plugins list", "--config good.yaml"),
    ("--config names.yaml", "--method|gmp|plugins list", "--config good.yaml"),
    ("--config nan.yaml", "--sparsity|nan|0 to below 1", "--config good.yaml"),
)  # fmt: skip


@pytest.mark.parametrize(("bad", "good", "words"), PLAN)
def test_bad_input_is_refused_before_anything_is_loaded(
    capsys: Capture, bad: list[str], good: list[str], words: list[str]
) -> None:
    refused(capsys, ("plan", *bad), tuple(words))
    before = files(Path())
    code = cli.main(["plan", *good])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out
    assert files(Path()) == before


# --- what only fit can know: models, data, optimizers, devices and folders ------------------------


class Reached(Exception):
    """A fit got past all checks."""


def reached(*_: object) -> NoReturn:
    raise Reached


FIT = rows(
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
    ("--data.batch_size 400 --epochs 1", "--epochs 1|too short|--data.batch_size", "--data.batch_size 400 --epochs 10"),
    ("--method.interval 0.001", "--epochs|too short|segment 2|fewer segments", "--method.interval 0.3"),
    ("--device cuda:99", "--device|cuda:99|auto or cpu", "--device cpu"),
    ("--out full", "--out|full|not empty|new directory", "--out empty"),
    ("--out file", "--out|file|new directory", "--out new"),
    # what plan refuses, fit refuses too
    ("--sparsity 1", "--sparsity|1.0|0 to below 1", ""),
    ("--method oneshoot", "--method|'oneshoot'|'oneshot'", ""),
    ("--replicas.values [1,2]", "--replicas.values|2 values|--replicas.count 3", ""),
    ("--method imp --method.retrain lrw --method.dense 0.1", "--method.retrain|--method.dense", ""),
)  # fmt: skip


@pytest.mark.parametrize(("bad", "good", "words"), FIT)
def test_fit_checks_everything_before_it_makes_its_folder(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, bad: list[str], good: list[str], words: list[str]
) -> None:
    monkeypatch.setattr("sparsekit.rundir.locked", reached)  # anything that gets here would be trained
    refused(capsys, ("fit", *bad), tuple(words))
    if good != [""]:
        with pytest.raises(Reached):
            cli.main(["fit", "--device", "cpu", *good])


@pytest.mark.parametrize("out", ["file/run", "full/kept/run", "/proc/run"])
def test_an_out_that_cannot_be_made_is_bad_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.setattr("sparsekit.fit.run", reached)
    refused(capsys, ("fit", "--device", "cpu", "--out", out), ("--out", out, "can be written"))


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fitt", "unknown command|'fitt'|'fit'|plan"),
        ("--sparsity 0.5", "unknown option|'--sparsity'|fit"),
        ("plugins", "COMMAND"),
        ("plugins lst", "'lst'|list"),
        ("plugins list --kind methods", "--kind|'methods'|method"),
        ("plugins list --jsn", "--jsn"),
    ],
)
def test_unknown_commands_and_their_options(capsys: Capture, arguments: str, words: str) -> None:
    refused(capsys, tuple(arguments.split()), tuple(words.split("|")))


def test_no_command_is_bad_input_with_the_usage(capsys: Capture) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert "usage: sparsekit COMMAND" in out + err


@pytest.mark.parametrize(
    "arguments", ["--debug plan --sparsity 2", "plan --debug --sparsity 2", "fit --sparsity 2 --debug"]
)
def test_debug_shows_where_an_error_comes_from(capsys: Capture, arguments: str) -> None:
    with pytest.raises(UserError, match="--sparsity is 2"):
        cli.main(arguments.split())
    assert capsys.readouterr() == ("", "")


def raising(error: BaseException) -> Callable[[object], NoReturn]:
    def command(_: object) -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("--x is 3; give 4"), 2, "sparsekit: error: --x is 3; give 4\n"),
        (RunError("no replica stayed finite"), 1, "sparsekit: error: no replica stayed finite\n"),
        (KeyboardInterrupt(), 130, "sparsekit: interrupted\n"),
    ],
)
def test_how_a_command_ended_is_in_its_exit_code(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "plan", raising(error))
    assert cli.main(["plan"]) == code
    assert capsys.readouterr() == ("", said)
    with pytest.raises(type(error)):
        cli.main(["plan", "--debug"])
