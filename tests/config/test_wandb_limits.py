"""What W&B would refuse is refused before training: the same texts are given to W&B's own settings."""

from __future__ import annotations

from typing import Any

import pytest
import wandb

from sparsekit.config.options import WandbConfig
from sparsekit.config.wandb_limits import check_environment, check_wandb
from sparsekit.errors import UserError

PROJECTS = ["a", "a b", "ä.b-c_d", "x" * 128, "x" * 129, "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b"]
TAGS = ["a", "x" * 64, "x" * 65, ""]


def taken_by_wandb(**settings: Any) -> bool:
    try:
        wandb.Settings(**settings)
    except Exception:  # pydantic's or W&B's own
        return False
    return True


def refused(options: WandbConfig) -> str:
    try:
        check_wandb(options)
        check_environment(options)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "PROJECT", "TAGS", "RUN_GROUP", "JOB_TYPE", "NAME", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


@pytest.mark.parametrize("project", PROJECTS)
def test_projects_are_refused_as_wandb_refuses_them(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_by_wandb(project=project)
    error = refused(WandbConfig(project=project))
    assert bool(error) != taken
    assert not error or ("--wandb.project" in error and project[:20] in error.replace("\\\\", "\\"))
    monkeypatch.setenv("WANDB_PROJECT", project)
    assert bool(refused(WandbConfig())) != taken
    assert not refused(WandbConfig(project="mine"))  # an option wins over the variable


@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_refused_as_wandb_refuses_them(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_by_wandb(run_tags=("fine", tag))
    error = refused(WandbConfig(tags=["fine", tag]))
    assert bool(error) != taken
    assert not error or ("--wandb.tags" in error and f"{len(tag)} characters" in error)
    monkeypatch.setenv("WANDB_TAGS", f"fine,{tag}")
    assert bool(refused(WandbConfig())) != taken


@pytest.mark.parametrize("mode", ["of", "on", "offlin", "true", ""])
def test_a_mode_that_wandb_does_not_know_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken_by_wandb(mode=mode)
    monkeypatch.setenv("WANDB_MODE", mode)
    error = refused(WandbConfig())
    assert "WANDB_MODE" in error
    assert repr(mode) in error
    assert not refused(WandbConfig("offline"))


@pytest.mark.parametrize("mode", ["online", "offline", "disabled", "dryrun", "run", "shared"])
def test_wandbs_own_modes_are_taken(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken_by_wandb(mode=mode)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert not refused(WandbConfig())


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (WandbConfig(group="x" * 129), "--wandb.group"),
        (WandbConfig(job_type="x" * 65), "--wandb.job_type"),
    ],
)
def test_what_only_wandbs_server_refuses(options: WandbConfig, option: str) -> None:
    """Found in its users' reports: 128 characters a name or group, 64 a job type (wandb/wandb#6402)."""
    assert option in refused(options)
    assert not refused(WandbConfig("disabled", group=options.group, job_type=options.job_type))


def test_a_disabled_wandb_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not refused(WandbConfig("disabled", project="a/b", tags=["x" * 80]))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not refused(WandbConfig(project="a/b", tags=["x" * 80]))


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("WANDB_RESUME", "maybe", "never"),
        ("WANDB_BASE_URL", "api.example.org", "valid URL"),
        ("WANDB_INIT_TIMEOUT", "long", "valid number"),
        ("WANDB_CONSOLE", "hm", "wrap"),
    ],
)
def test_a_variable_that_wandb_refuses_is_refused_with_its_reason(
    name: str, value: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    error = refused(WandbConfig())
    assert name in error
    assert repr(value) in error
    assert part in error
    assert "\n" not in error
    assert not refused(WandbConfig(mode="disabled"))


@pytest.mark.parametrize("value", ["a/b", "a:b", "abc123", "a b"])
def test_ids_of_runs_are_refused_as_wandb_refuses_them(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", value)
    assert bool(refused(WandbConfig())) != taken_by_wandb(run_id=value)
