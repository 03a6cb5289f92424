"""Options on the command line and in YAML: names for classes, what wins over what, and the way back to text."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsekit.cli import main as cli
from sparsekit.config import parser as options
from sparsekit.config.checks import check
from sparsekit.config.options import EvaluateConfig, ExportConfig, FitConfig, MergeConfig, describe, flatten
from sparsekit.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.y*ml"))  # configs/sweeps: test_sweep_spec.py

GMP = {"name": "gmp", "start": 0.1, "end": 0.7, "interval": 0.1, "initial": 0.0, "retrain": None}
IMP = {"name": "imp", "dense": 0.4, "cycles": 3, "retrain": "llr"}
DPF = {"name": "dpf", "start": 0.05, "end": 0.6, "interval": 0.05, "freeze": 0.8, "retrain": None}

Write = Callable[..., str]


def parse(*argv: str) -> FitConfig:
    return options.parse(options.build("sparsekit fit", "about"), argv)


def method(*argv: str) -> dict[str, Any]:
    return dict(describe(parse(*argv))["method"])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return str(path)

    return make


# --- names on the command line --------------------------------------------------------------------


def test_a_bare_command_is_gmp_with_a_uniform_soup_on_digits() -> None:
    plain = describe(parse())
    assert plain["method"] == GMP
    assert plain["merge"] == {"name": "uniform"}
    assert plain["data"]["name"] == "digits"
    assert plain["seed"] == 0


def test_options_may_come_in_any_order() -> None:
    given = ["--method imp", "--method.cycles=2", "--merge=greedy"]
    expected = describe(parse("--method", "imp", "--method.cycles", "2", "--merge", "greedy"))
    assert (expected["method"], expected["merge"]) == ({**IMP, "cycles": 2}, {"name": "greedy"})
    for order in itertools.permutations(given):
        argv = " ".join(order).split()
        assert describe(parse(*argv)) == expected, argv


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--method", "gmp"], GMP),
        (["--method", "dpf"], DPF),
        (["--method", "dpf", "--method", "dpf"], DPF),  # the defaults of DPF, none of GMP's
        (["--method", "imp", "--method", "dpf"], DPF),
        (["--method", "sparsekit.methods.dpf.DPF"], DPF),
        (["--method", "sparsekit.methods.dpf.DPF", "--method.end", "0.5"], {**DPF, "end": 0.5}),
        (["--method.end", "0.5", "--method", "dpf"], {**DPF, "end": 0.5}),
        (["--method.end", "0.5"], {**GMP, "end": 0.5}),
        (["--method.end", "0.4", "--method.end", "0.5", "--method", "dpf"], {**DPF, "end": 0.5}),
        (["--method", "imp", "--method.cycles=2", "--method", "imp"], {**IMP, "cycles": 2}),
    ],
)
def test_a_class_starts_from_its_own_defaults(argv: list[str], expected: dict[str, Any]) -> None:
    assert method(*argv) == expected


@pytest.mark.parametrize(
    "argv",
    [["--method", "imp", "--method.start", "0.2"], ["--method.cycles", "2"], ["--method.start=0.2", "--method=imp"]],
)
def test_an_option_of_another_plugin_is_unknown(argv: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"^--method\.(start is no option of method 'imp', but of dpf|cycles .*'gmp', but of .*bimp)"
    ):
        parse(*argv)


@pytest.mark.parametrize(
    ("argv", "option", "nearest"),
    [
        (["--spars", "0.5"], "--spars", "--sparsity"),
        (["--sparsit=0.5"], "--sparsit", "--sparsity"),
        (["--method.star", "0.2"], "--method.star", "--method.start"),
        (["--method", "imp", "--method.cycle", "2"], "--method.cycle", "--method.cycles"),
        (["--replicas.coun", "2"], "--replicas.coun", "--replicas.count"),
        (["--data.batch", "2"], "--data.batch", "--data."),
    ],
)
def test_nothing_is_abbreviated(argv: list[str], option: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(f"unknown option {option}. Did you mean '{nearest}")


@pytest.mark.parametrize("argv", [["-o", "x.json"], ["-ox.json"], ["--out=x.json"], ["--output", "x.json"]])
def test_out_has_the_same_names_in_every_command(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text('{"seed": 3}')  # a file of the last run, which is no file of options
    for of in (EvaluateConfig, ExportConfig, MergeConfig, FitConfig):
        found: Any = options.parse_as(of, options.build("test", "", of), options.split(argv)[1])
        assert (found.out, getattr(found, "seed", 0)) == ("x.json", 0)


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: imp", IMP),
        ("method: {name: imp, cycles: 2}", {**IMP, "cycles": 2}),
        ("method:\n  name: dpf\n  start: 0.3", {**DPF, "start": 0.3}),
        ("method: sparsekit.methods.dpf.DPF", DPF),
        ("method: {class_path: sparsekit.methods.dpf.DPF}", DPF),
        ("method:\n  class_path: sparsekit.methods.dpf.DPF\n  init_args: {start: 0.3}", {**DPF, "start": 0.3}),
        ("method: {class_path: sparsekit.methods.imp.IMP, init_args: {cycles: 2}}", {**IMP, "cycles": 2}),
        ("sparsity: 0.5", GMP),
    ],
)
def test_the_ways_to_choose_a_plugin_in_yaml(write: Write, text: str, expected: dict[str, Any]) -> None:
    assert method("--config", write(text)) == expected
    assert method(f"--config={write(text)}") == expected


FORMS = {
    "name": "method: {name: dpf, start: 0.3, freeze: 0.9}",
    "class_path": "method: {class_path: sparsekit.methods.dpf.DPF, init_args: {start: 0.3, freeze: 0.9}}",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dpf", ["dpf", pytest.param("sparsekit.methods.dpf.DPF", marks=pytest.mark.slow)])
@pytest.mark.parametrize("gmp", ["gmp", pytest.param("sparsekit.methods.gmp.GMP", marks=pytest.mark.slow)])
def test_another_class_drops_the_options_of_the_file_and_the_same_class_keeps_them(
    write: Write, text: str, dpf: str, gmp: str
) -> None:
    file, kept = write(text), {**DPF, "start": 0.3, "freeze": 0.9}
    assert method("--config", file) == kept
    assert method("--config", file, "--method", dpf) == kept
    assert method("--config", file, "--method.end", "0.5", "--method", dpf) == {**kept, "end": 0.5}
    assert method("--config", file, "--method", gmp) == GMP  # though GMP has a `start` as well
    assert method("--config", file, "--method", "imp", "--method.cycles", "2") == {**IMP, "cycles": 2}
    assert method("--config", file, "--method", gmp, "--method", dpf) == kept


def test_what_follows_a_config_file_wins_over_it_and_what_precedes_it_does_not(write: Write) -> None:
    file = write("method: {name: dpf, start: 0.3}\nsparsity: 0.5\nreplicas: {count: 2}")
    after = parse("--config", file, "--sparsity", "0.7", "--replicas.vary", "lr")
    assert (after.sparsity, after.replicas.count, after.replicas.vary) == (0.7, 2, "lr")
    assert parse("--sparsity", "0.7", "--config", file).sparsity == 0.5
    assert method("--method", "imp", "--config", file) == {**DPF, "start": 0.3}
    assert method("--method", "imp", "--method.cycles", "2", "--config", file) == {**DPF, "start": 0.3}
    other = write("sparsity: 0.6", "other.yaml")
    assert method("--method", "imp", "--config", other) == IMP
    assert method("--method.cycles", "2", "--config", other, "--method", "imp") == {**IMP, "cycles": 2}
    assert describe(parse("--config", file, "--config", other))["method"] == {**DPF, "start": 0.3}
    assert parse("--config", file, "--config", other).sparsity == 0.6


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-05", 1e-05), ("1E-5", 1e-05), ("1e5", 1e5), ("1.5e-3", 0.0015), ("2.e-1", 0.2), ("3", 3.0), (".5", 0.5)],
)
def test_floats_as_people_and_python_write_them(write: Write, text: str, value: float) -> None:
    for config in (parse("--optimizer.lr", text), parse("--config", write(f"optimizer: {{lr: {text}}}"))):
        assert config.optimizer.lr == value
        assert isinstance(config.optimizer.lr, float)


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted(write: Write) -> None:
    assert parse("--out", "123").out == "123"
    assert parse("--wandb.project", "1e-05").wandb.project == "1e-05"
    assert parse("--config", write("out: '7'")).out == "7"


def test_mappings_and_lists(write: Write) -> None:
    config = parse("--model.kwargs", "{layers: [1, 2], drop_path_rate: 1e-1}", "--masks.exclude", "['^conv1', fc]")
    assert config.model.kwargs == {"layers": [1, 2], "drop_path_rate": 0.1}
    assert config.masks.exclude == ["^conv1", "fc"]
    assert parse("--masks.exclude+", "fc", "--masks.exclude+", "conv1").masks.exclude == ["fc", "conv1"]
    assert parse("--replicas", "{count: 2, vary: lr}").replicas.vary == "lr"
    varied = parse("--config", write("method: str\nreplicas: {vary: method.strength, values: [1, 2, 0.5]}")).replicas
    assert (varied.vary, varied.values) == ("method.strength", [1.0, 2.0, 0.5])
    assert parse("--config", write("replicas: {values: [1, 2, 3]}")).replicas.values == [1.0, 2.0, 3.0]


# --- the way back ---------------------------------------------------------------------------------

RUNS = [
    [],
    ["--method", "imp", "--method.cycles", "2", "--method.retrain", "clr", "--merge", "greedy"],
    ["--method", "dpf", "--method.start", "0.01", "--merge", "none", "--optimizer.lr", "1e-05", "--seed", "7"],
    ["--model.name", "vit_tiny_patch16_224", "--model.kwargs", "{img_size: 16, layers: [1, 2]}", "--out", "123"],
    ["--replicas.vary", "weight_decay", "--replicas.values", "[0, 1e-4, 5e-4]", "--masks.exclude", "['^conv1']"],
    ["--method", "str", "--replicas.vary", "method.strength", "--replicas.values", "[0.01, 1e-05, 1]"],
    ["--replicas.vary", "augment", "--data.augment_strength", "1.5", "--label_smoothing", "0.1"],
    ["--data.name", "cifar10", "--data.root", "~/data: # odd", "--data.augment", "false", "--wandb.mode", "disabled"],
]


@pytest.mark.parametrize("argv", RUNS)
def test_print_config_prints_what_gives_the_same_config(
    write: Write, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    assert cli.main(["plan", *argv, "--print_config"]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    expected = describe(parse(*argv))
    assert describe(parse("--config", write(printed))) == expected
    # and as plain YAML it is the description itself
    assert yaml.safe_load(printed) == expected


def test_text_that_yaml_would_read_as_something_else_stays_text(write: Write) -> None:
    config = parse("--config", write("wandb: {project: '1e-05'}\nout: 'true'"))
    assert (config.wandb.project, config.out) == ("1e-05", "true")


@pytest.mark.parametrize("argv", RUNS)
def test_config_yaml_of_a_run_gives_the_same_config(write: Write, argv: list[str]) -> None:
    plain = describe(parse(*argv))
    assert describe(parse("--config", write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)))) == plain


def test_describe_is_complete_and_flatten_gives_the_names_of_the_options() -> None:
    plain = describe(parse("--method", "imp", "--merge", "greedy", "--replicas.count", "2"))
    flat = flatten(plain)
    assert flat["method"] == "imp"
    assert (flat["method.cycles"], flat["method.retrain"]) == (3, "llr")
    assert flat["merge"] == "greedy"
    assert flat["replicas.count"] == 2
    assert flat["sparsity"] == 0.9
    assert flat["model.kwargs"] == {}
    assert not {"replicas", "method.name", "merge.name"} & set(flat)
    # each name is an option that the parser takes
    known = options.build("sparsekit fit", "")._option_string_actions
    assert all(f"--{name}" in known for name in flat if not name.startswith(("method.", "merge.")))


@pytest.mark.slow
def test_every_file_in_configs_is_a_config() -> None:
    for file in CONFIGS:
        config = parse("--config", str(file))
        check(config)
        assert describe(config)["method"]["name"] == flatten(yaml.safe_load(file.read_text()) | names(file))["method"]


def names(file: Path) -> dict[str, Any]:
    """The plugins that a config file names, as `describe` writes them."""
    plain = yaml.safe_load(file.read_text())
    chosen = {kind: plain.get(kind, name) for kind, name in options.DEFAULTS.items()}
    return {kind: spec if isinstance(spec, dict) else {"name": spec} for kind, spec in chosen.items()}


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [["--method.help", "gmp"], ["--method.help=gmp"]])
def test_help_of_a_plugin(capsys: pytest.CaptureFixture[str], flag: list[str]) -> None:
    for command in ("fit", "plan"):
        assert cli.main([command, *flag]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "Gradual magnitude pruning" in out
        for option in ("start", "end", "interval", "initial"):
            assert f"--method.{option}" in out
        assert "Fraction of the budget at which the ramp starts" in out


def test_help_says_what_a_group_takes_and_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--distill DIR Short for --distill.model DIR." in text
    assert "--masks.allocation {global,uniform,erk,lamp} How" in text


def test_help_names_every_option_and_every_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in flatten(describe(parse())):
        assert f"--{name}" in out or name.startswith(("method.", "merge."))
    for name in ("gmp", "imp", "bimp", "dpf", "oneshot", "uniform", "greedy", "best", "none"):
        assert name in out


# --- what must not run ----------------------------------------------------------------------------


def test_no_option_calls_what_is_no_plugin(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [
        write("method: {class_path: os.system, init_args: {command: touch pwned}}", "a.yaml"),
        write("method: {class_path: os.mkdir, init_args: {path: pwned}}", "b.yaml"),
        write("method: os.getcwd", "c.yaml"),
        write("method: {name: os.system, command: touch pwned}", "d.yaml"),
        write("merge: !!python/object/apply:os.system ['touch pwned']", "e.yaml"),
    ]
    before = sorted(tmp_path.iterdir())
    attempts = [["--config", file] for file in files] + [
        ["--method", "os.system", "--method.command", "touch pwned"],
        ["--method", "os.system"],
        ["--method.class_path", "os.system"],
        ["--method=subprocess.Popen"],
        ["--method", "sparsekit.cli.main.main"],
        ["--method", "sparsekit.errors.UserError"],
        ["--merge", "sparsekit.methods.gmp.GMP"],
        ["--model.kwargs", "{a: !!python/object/apply:os.mkdir [pwned]}"],
    ]
    for attempt in attempts:
        assert cli.main(["plan", *attempt]) == 2, attempt
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("sparsekit: error: --"), err
        assert err.count("\n") == 1, err
    assert sorted(tmp_path.iterdir()) == before
