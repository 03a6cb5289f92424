"""What a person sees, on a terminal and without one."""

import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from sparsekit.display.live import Display
from sparsekit.display.text import duration, percent

RUN = "runs/gmp-uniform-" + "a-long-name-" * 12
SUMMARY = {
    "status": "done", "method": "gmp", "merge": "uniform", "out": RUN, "segments": 8, "wall_seconds": 200.4,
    "test.accuracy": 0.965, "test.loss": 0.14234, "candidates.mean_accuracy": 0.953, "candidates.best_accuracy": 0.96,
    "sparsity": 0.95, "model_sparsity": 0.9421, "nonzero": 16058, "parameters": 321162, "model_bytes": 1304567,
}  # fmt: skip
ROWS = [
    {"segment": 1, "start_epoch": 0.0, "epochs": 18.0, "sparsity": 0.0, "lr": "0.1 → 0.094",
     "replicas": 1, "merge": ""},
    {"segment": 2, "start_epoch": 18.0, "epochs": 42.0, "sparsity": 0.99999, "lr": "0.0778…0.1 → 0.0001…0.001",
     "replicas": 10, "merge": "of 10"},
]  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """Standard output and standard error, each a terminal of 80 columns or a file."""

    def __init__(self, terminal: bool, err_terminal: bool | None = None) -> None:
        self.clock = Clock()
        self.out, self.err = io.StringIO(), io.StringIO()

        def console(file: io.StringIO, tty: bool) -> Console:
            environment = {"TERM": "xterm-256color"}
            return Console(file=file, force_terminal=tty, width=80, markup=False, highlight=False, _environ=environment)

        err = console(self.err, terminal if err_terminal is None else err_terminal)
        self.display = Display(console(self.out, terminal), err, self.clock)

    @property
    def text(self) -> str:
        """Standard output without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.out.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_plan_fits_80_columns_and_says_what_it_costs(terminal: bool) -> None:
    screen = Screen(terminal)
    screen.display.plan(ROWS, 60.0, 438.5)
    lines = screen.text.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[:3]] == [
        ["segment", "start", "epochs", "sparsity", "learning", "rate", "replicas", "merge"],
        ["1", "0", "18", "0.00", "%", "0.1", "→", "0.094", "1", "–"],
        ["2", "18", "42", "99.999", "%", "0.0778…0.1", "→", "0.0001…0.001", "10", "of", "10"],
    ]
    assert "replica-epochs: 60 along the critical path, 438.5 in total" in lines


def test_a_layer_that_lost_all_its_weights_is_told_once_and_in_the_last_table() -> None:
    screen = Screen(False)
    for layers in (["a", "b"], ["a", "b"], ["b", "c"]):
        screen.display.emptied(layers, 0.98)
    lines = screen.err.getvalue().splitlines()
    assert len(lines) == 2
    assert all(part in lines[0] for part in ("warning", "a, b", "98.00 %", "--masks.floor"))
    assert lines[1].startswith("warning: c: ")
    screen.display.finish(SUMMARY | {"layers.empty": ["a", "c"]})
    (line,) = [line for line in screen.text.splitlines() if line.startswith("empty layers")]
    assert all(part in line for part in ("a, c", "--masks.floor"))
    assert "empty layers" not in Screen(False).text


@pytest.mark.parametrize(
    ("changes", "title"),
    [({"merged": False}, "gmp, nothing merged"), ({"merged": True}, "gmp + uniform"),
     ({"merged": False, "merge": "none"}, "gmp, nothing merged"), ({}, "gmp + uniform")],
)  # fmt: skip
def test_a_run_that_merged_nothing_is_not_named_after_its_merge(changes: dict[str, Any], title: str) -> None:
    screen = Screen(False)
    screen.display.finish(SUMMARY | changes)
    assert re.split(r"  +", screen.text.splitlines()[1]) == [title, "done"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_table_cuts_no_path(terminal: bool) -> None:
    screen = Screen(terminal)
    screen.display.finish(SUMMARY, [f"/home/me/{RUN}/wandb/offline-run-20261122_181850-u5xp036t", "/a b"])
    lines = [re.split(r"  +", line, maxsplit=1) for line in screen.text.splitlines() if line]
    assert lines == [
        ["gmp + uniform", "done"],
        ["soup", "96.50 % on the test split, loss 0.1423"],
        ["mean candidate", "95.30 %  (soup +1.20)"],
        ["best candidate", "96.00 %  (soup +0.50)"],
        ["sparsity", "95.00 % of the prunable weights"],
        ["", "94.21 % of all parameters"],
        ["nonzero", "16,058 of 321,162 parameters"],
        ["model size", "1.3 MB"],
        ["time", "3 min 20 s, 8 segments"],
        ["run", RUN],
        ["model", RUN + "/model"],
        ["W&B", f"offline; to upload: wandb sync /home/me/{RUN}/wandb/offline-run-20261122_181850-u5xp036t '/a b'"],
    ]


def test_the_last_table_says_how_sure_a_gain_is() -> None:
    screen = Screen(False)
    screen.display.finish(SUMMARY | {"gain.accuracy": 0.012, "gain.accuracy.low": -0.001, "gain.accuracy.high": 0.025})
    (line,) = (line for line in screen.text.splitlines() if "mean candidate" in line)
    assert all(part in line for part in ("95.30 %", "soup +1.20", "95 % interval -0.10 to +2.50", "test"))


def test_the_last_table_leaves_out_what_there_is_not() -> None:
    screen = Screen(False)
    candidates = {"candidates.mean_accuracy": None, "candidates.best_accuracy": None}
    screen.display.finish(SUMMARY | candidates | {"merge": "none"}, ["https://wandb.ai/me/sparsekit/runs/u5xp036t"])
    assert "accuracy    96.50 % on the test split" in screen.text
    assert "W&B         https://wandb.ai/me/sparsekit/runs/u5xp036t" in screen.text
    assert not re.search("candidate|soup|None", screen.text)

    stopped = Screen(False)
    stopped.display.finish({"status": "stopped", "method": "imp", "merge": "greedy", "out": "r"})
    assert stopped.text.split() == ["imp", "+", "greedy", "stopped", "run", "r"]


def test_the_score_of_another_task_is_a_number_with_its_name() -> None:
    screen = Screen(False)
    screen.display.merged("mAP", 0.5, [0.5125, 0.5375], ingredients=2, lost=True)
    assert screen.text.endswith(
        "soup of 2: mAP 0.5000 held out (candidates mAP 0.5250 mean, mAP 0.5375 best)  lost 0.0375\n"
    )
    screen = Screen(False)
    found = {"status": "done", "score": "mean_IoU", "test.mean_IoU": 0.75, "test.loss": 0.5, "merge": "best"}
    found |= {"test.pixel_accuracy": 0.9, "candidates.mean_mean_IoU": 0.7, "candidates.best_mean_IoU": 0.8}
    screen.display.finish(found | {"merges.lost": 1, "merges.count": 2, "merges.margin": 0.02})
    lines = [re.split(r"  +", line, maxsplit=1) for line in screen.text.splitlines() if line]
    assert lines[1:] == [
        ["soup", "mean_IoU 0.7500 on the test split, loss 0.5000"],
        ["mean candidate", "mean_IoU 0.7000  (soup +0.0500)"],
        ["best candidate", "mean_IoU 0.8000  (soup -0.0500)"],
        ["", "pixel_accuracy 90.00 %"],
        ["merges lost", "1 of 2: the soup more than 0.02 below its best candidate, held out"],
    ]


def train(screen: Screen, segments: int = 2, replicas: int = 3, seconds: float = 1.0) -> None:
    """A run of 4 steps a replica, `seconds` each."""
    with screen.display as display:
        display.begin(segments * replicas * 4)
        for index in range(segments):
            display.start_segment(index, segments, 0.729, replicas)
            for replica in range(replicas):
                for step in range(4):
                    screen.clock.now += seconds
                    display.progress(replica, step + 1, 4, 0.5)
            display.merged("accuracy", 0.942, [0.93, 0.925, 0.938][:replicas], ingredients=min(replicas, 3 - index))


def test_without_a_terminal_there_are_plain_lines_and_few() -> None:
    screen = Screen(False)
    train(screen)
    assert screen.out.getvalue().splitlines() == [
        "segment 1/2  72.9 % sparse  3 replicas",
        "segment 1/2  72.9 % sparse  replica 3/3  step 2/4  loss 0.5000  about 14 s left",
        "segment 1/2  72.9 % sparse  soup of 3: 94.2 % held out (candidates 93.1 % mean, 93.8 % best)",
        "segment 2/2  72.9 % sparse  3 replicas",
        "segment 2/2  72.9 % sparse  replica 3/3  step 2/4  loss 0.5000  about 2.0 s left",
        "segment 2/2  72.9 % sparse  soup of 2 of 3: 94.2 % held out (candidates 93.1 % mean, 93.8 % best)",
    ]


def test_one_model_is_no_soup() -> None:
    screen = Screen(False)
    train(screen, segments=1, replicas=1)
    assert screen.out.getvalue().splitlines() == [
        "segment 1/1  72.9 % sparse  1 replica",
        "segment 1/1  72.9 % sparse  94.2 % held out",
    ]
    screen.display.start_segment(1, 2, 0.9, 0)
    assert screen.out.getvalue().splitlines()[-1] == "segment 2/2  90.0 % sparse  prunes only"


def test_a_terminal_shows_one_live_line_whole() -> None:
    screen = Screen(True)
    with screen.display as display:
        display.begin(400)
        display.start_segment(19, 20, 0.9995, 10)
        display.progress(9, 100, 400, 0.12345)
    last = [line for line in screen.text.splitlines() if "loss" in line][-1]
    assert last.startswith("segment 20/20  99.95 % sparse  replica 10/10  loss 0.1235 ")
    assert " 25 % " in last
    assert last.endswith(" left")
    assert len(last) <= 80
    assert screen.out.getvalue().endswith("\x1b[1A\x1b[2K"), "the live line goes away"


def test_a_terminal_keeps_what_every_segment_came_to() -> None:
    screen = Screen(True)
    train(screen)
    assert len(set(re.findall("segment ./2  72.9 % sparse  soup of .*best\\)", screen.text))) == 2
    assert "about" not in screen.text


@pytest.mark.parametrize(("terminal", "err_terminal"), [(False, False), (True, False), (False, True), (True, True)])
def test_warnings_are_standard_errors_but_never_break_the_live_line(terminal: bool, err_terminal: bool) -> None:
    screen = Screen(terminal, err_terminal)
    text = "W&B stopped [bold]: " + "x" * 100
    with screen.display as display:
        display.begin(10)
        display.warn(text)
    above_the_live_line = terminal and err_terminal
    assert (text in screen.text) is above_the_live_line
    assert (text in screen.err.getvalue()) is not above_the_live_line

    screen.display.warn("afterwards")
    assert "afterwards" in screen.err.getvalue()


def test_what_others_print_to_a_redirected_standard_error_gets_there(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(True, err_terminal=False)
    with screen.display as display:
        display.begin(10)
        print("from a plugin", file=sys.stderr)
    assert "from a plugin" not in screen.text
    assert capfd.readouterr().err == "from a plugin\n"


def test_a_note_is_shown_as_it_is() -> None:
    screen = Screen(False)
    screen.display.note("[red]not markup[/red] :smile: " + "y" * 200)
    assert screen.out.getvalue() == "[red]not markup[/red] :smile: " + "y" * 200 + "\n"


def test_a_pipe_that_knows_ascii_only_gets_every_line() -> None:
    code = f"from sparsekit.display.live import Display; Display().plan({ROWS!r}, 1, 2); Display().note(':smile:')"
    environment: dict[str, Any] = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"0.1 ? 0.094" in done.stdout
    assert b":smile:" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("arguments", ["fit --help", "merge --help", "export --help", "fit --method.help str"])
def test_help_is_shown_where_only_ascii_can_be(arguments: str) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "sparsekit", *arguments.split()]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "--" in text
    assert ("?" in text) == arguments.endswith("str")  # sparsekit's own help needs no more than ASCII


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9, "90.0 %"), (0.729, "72.9 %"), (0.9995, "99.95 %"), (0.99999, "99.999 %"), (1.0, "100.0 %"), (0.0, "0.0 %")],
)
def test_only_all_is_100_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
