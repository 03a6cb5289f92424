"""Every block of code in the README, the documentation and the packages' READMEs does what it says.

Fast tests hold the options of every training command against `sparsekit plan`, which takes the same ones, whether a
block is marked or not, and run pages that only plan. Slow tests run the blocks without a mark, page by page, in an
empty folder with the project's `configs`, `plugins` and `benchmarks` and with the finished runs and models that pages
speak of (`RUN`, `a.pt`, …). What trains is shortened by `shortened`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import pytest
import torch
import yaml
from documents import ROOT, BadPage, Block
from fake_site import offline
from safetensors.torch import load_file

from sparsekit.cli import main
from sparsekit.sweep import spec

pytestmark = pytest.mark.docs
Capture = pytest.CaptureFixture[str]
BLOCKS = [block for page in documents.pages() for block in documents.blocks(page)]
TRAINING = [b for b in BLOCKS if re.search("sparsekit fit|make fit", b.text) and b.page != documents.GUIDE]
RUNS = ("RUN", "RUN1", "RUN2", "RUN3", "DENSE_RUN")
MODELS = ("models/third.safetensors", "a.pt", "b.pt")
SHORT = "--epochs 2 --data.batch_size 20 --wandb.mode disabled --evaluation.diagnostics false"


def shortened(command: str) -> str:
    """The same command, for seconds: two epochs, the first run of a sweep, two ranks."""
    command = re.sub(r"\s#\s.*", "", command)
    if re.search(r"\bsparsekit sweep\b", command):
        return f"{command} --count 1"
    if re.search(r"\bsparsekit fit\b", command) and not re.search(r"\.help|--print_config", command):
        command = re.sub(r"torchrun\b.*--nproc-per-node \d+", "torchrun --standalone --nproc-per-node 2", command)
        return f"{command} {SHORT}"
    return command


def fit_options(command: str) -> list[str] | None:
    """The options of a training command, however it is started; None for other commands."""
    words = shlex.split(command, comments=True)
    if words[:1] == ["make"]:
        mine = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # `make test` sets them
        planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, env=mine, capture_output=True, text=True)
        assert planned.returncode == 0, f"{command}: {planned.stderr}"
        words = shlex.split(planned.stdout.splitlines()[-1], comments=True)
    words = words[: words.index(">")] if ">" in words else words
    for place, word in enumerate(words[:-1]):
        if Path(word).name == "sparsekit" and words[place + 1] == "fit":
            return words[place + 2 :]
    return None


# --- the rules ---------------------------------------------------------------------------------------


def test_there_are_blocks_of_every_kind() -> None:
    assert {block.language for block in BLOCKS} == documents.LANGUAGES
    assert {block.needs for block in BLOCKS} == {"", *documents.NEEDS}
    assert len([block for block in BLOCKS if block.language == "sh" and not block.needs]) >= 20
    assert "def test_the_guide_does_what_it_says" in (ROOT / "tests" / "plugins" / "test_scaffold.py").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```\nls\n```\n", "language ''"),
        ("```ruby\nls\n```\n", "language 'ruby'"),
        ("<!-- needs: luck -->\n```sh\nls\n```\n", "needs 'luck'"),
        ("<!-- needs: -->\n```sh\nls\n```\n", "needs ''"),
        ("<!-- needs: gpu -->\n\n```sh\nls\n```\n", "not on the line before"),
        ("```sh\nls\n", "no end"),
    ],
)
def test_a_block_that_nothing_could_run_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(BadPage, match=re.escape(says)):
        list(documents.blocks(tmp_path / "page.md"))


def test_blocks_are_read_as_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- needs: gpu -->\n```sh\n# why\nx \\\n  y\nz  # w\n```\n```yaml\n# f.yaml\na: 1\n```\n")
    first, second = documents.blocks(page)
    assert (first.needs, first.line, first.commands) == ("gpu", 3, ["x    y", "z  # w"])
    assert (second.needs, second.file, second.text) == ("", "f.yaml", "# f.yaml\na: 1\n")


@pytest.mark.parametrize(
    ("command", "short"),
    [
        ("sparsekit fit --method gmp  # why", f"sparsekit fit --method gmp  {SHORT}"),
        ("sparsekit fit --method.help imp", "sparsekit fit --method.help imp"),
        ("sparsekit fit --print_config > a", "sparsekit fit --print_config > a"),
        ("sparsekit sweep a.yaml", "sparsekit sweep a.yaml --count 1"),
        (
            "torchrun --nproc-per-node 8 -m sparsekit fit",
            f"torchrun --standalone --nproc-per-node 2 -m sparsekit fit {SHORT}",
        ),
    ],
)
def test_what_trains_is_shortened(command: str, short: str) -> None:
    assert shortened(command) == short


# --- options, fast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in TRAINING if b.commands], ids=str)
def test_training_commands_have_options_that_fit_takes(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.syspath_prepend(tmp_path)
    for other in documents.blocks(block.page):
        if other.file and other.language in ("python", "yaml"):
            Path(other.file).write_text(other.text)
            monkeypatch.delitem(sys.modules, Path(other.file).stem, raising=False)  # pages have modules of one name
    found = {command: options for command in block.commands if (options := fit_options(command)) is not None}
    assert found
    for command, options in found.items():
        assert main.main(["plan", *options]) == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_blocks_are_python(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_blocks_are_configs_or_sweeps(block: Block, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    if "parameters" not in yaml.safe_load(block.text):
        assert main.main(["plan", "--config", str(file)]) == 0, capsys.readouterr().err
        return
    sweep = spec.read(file)
    for cell in sweep.cells(None):
        assert main.main(["plan", *sweep.options(cell)]) == 0, capsys.readouterr().err


# --- blocks, run --------------------------------------------------------------------------------------


def environment(site: Path) -> dict[str, str]:
    """As a user has it: what a page installs goes to a folder of its own, sparsekit is this checkout's."""
    return {**offline(site), "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def execute(command: str | list[str], folder: Path, site: Path) -> str:
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment(site),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    execute(f"sparsekit fit --out run {SHORT}", folder, folder / "site")
    return folder / "run"


def furnish(folder: Path, finished: Path) -> None:
    """What the pages take as given."""
    for name in ("configs", "plugins", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for name in RUNS:
        shutil.copytree(finished, folder / name)
    weights = finished / "model" / "model.safetensors"
    for name in MODELS:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".pt"):
            torch.save(load_file(weights), folder / name)
        else:
            shutil.copy(weights, folder / name)


def run_block(block: Block, folder: Path, site: Path) -> None:
    if block.file:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(block.text)
    elif block.language == "python":
        execute([sys.executable, "-c", block.text], folder, site)
    for command in block.commands:
        execute(shortened(command), folder, site)


def runnable(page: Path) -> list[Block]:
    """The blocks of a page that its test runs."""
    if page == documents.GUIDE:
        return []
    return [b for b in documents.blocks(page) if not b.needs and b.language in ("sh", "console", "python", "yaml")]


def quick(page: Path) -> bool:
    """Whether nothing on the page trains or looks at a trained model."""
    plans = re.compile(r"sparsekit (?:plan|plugins list|fit --\w+\.help)\b")
    return all(b.language == "sh" and all(map(plans.match, b.commands)) for b in runnable(page))


def run_page(page: Path, folder: Path, site: Path) -> None:
    for block in runnable(page):
        try:
            run_block(block, folder, site)
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}") from error


PAGES = [page for page in documents.pages() if runnable(page)]


@pytest.mark.parametrize("page", [p for p in PAGES if quick(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_of_plans_does_what_it_says(page: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run_page(page, tmp_path, tmp_path / "site")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [p for p in PAGES if not quick(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    furnish(folder, finished)
    run_page(page, folder, tmp_path / "site")
