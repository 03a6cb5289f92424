"""W&B's limits on what names a run. W&B checks some of them only when a run is uploaded, which may be days later."""

from __future__ import annotations

import os
from collections.abc import Iterable

from sparsekit.config.options import WandbConfig
from sparsekit.errors import UserError

NAME = 128
_TAG, _KIND = 64, 64
_FREE = {
    *(f"WANDB_{name}" for name in ("API_KEY", "PROJECT", "ENTITY", "MODE", "NAME", "NOTES", "TAGS", "RUN_GROUP")),
    *(f"WANDB_{name}" for name in ("JOB_TYPE", "DIR", "RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH")),
}
"""Variables whose limits are known here, or that have none."""
_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def check_wandb(options: WandbConfig) -> None:
    """Raise UserError where an option, or W&B's environment in its place, is beyond a limit of W&B."""
    mode = os.environ.get("WANDB_MODE") if options.mode == "auto" else None
    if mode is not None and mode not in _MODES:
        raise UserError(f"WANDB_MODE is {mode!r}; give {', '.join(_MODES[:2])} or {_MODES[2]}, or unset it")
    if (mode or options.mode) == "disabled":
        return
    default = options.project == WandbConfig().project
    project = os.environ.get("WANDB_PROJECT") if default else None
    where, name = ("WANDB_PROJECT", project) if project else ("--wandb.project", options.project)
    if found := [character for character in "/\\#?%:" if character in name]:
        hint = "; set WANDB_ENTITY for what stands before the slash" if found[0] == "/" else ""
        raise UserError(f"{where} is {name!r}; W&B takes no {found[0]} in it{hint}")
    _check_length(where, [name], NAME)
    environment = tags.split(",") if (tags := os.environ.get("WANDB_TAGS")) else []
    _check_length("--wandb.tags", options.tags, _TAG)
    _check_length("WANDB_TAGS", environment if not options.tags else [], _TAG)
    for option, value, most in (
        ("--wandb.group", options.group, NAME),
        ("--wandb.job_type", options.job_type, _KIND),
        ("WANDB_RUN_GROUP", os.environ.get("WANDB_RUN_GROUP") if not options.group else None, NAME),
        ("WANDB_JOB_TYPE", os.environ.get("WANDB_JOB_TYPE") if not options.job_type else None, _KIND),
        ("WANDB_NAME", os.environ.get("WANDB_NAME"), NAME),
    ):
        _check_length(option, [value] if value else [], most)
    if taken := [character for character in ":;,#?/'" if character in os.environ.get("WANDB_RUN_ID", "")]:
        raise UserError(f"WANDB_RUN_ID is {os.environ['WANDB_RUN_ID']!r}; W&B takes no {taken[0]} in it")


def check_environment(options: WandbConfig) -> None:
    """Have W&B read its other variables, as it will once training has begun; importing it takes a second.

    Raises:
        UserError: W&B refuses one of them.
    """
    others = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name not in _FREE}
    if not others or "disabled" in (options.mode, os.environ.get("WANDB_MODE")):
        return
    try:
        import wandb
    except Exception:  # the run then goes without W&B, and says so
        return
    for name, value in others.items():
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except Exception as error:
            lines = str(error).splitlines()  # pydantic's third line holds the reason
            reason = (lines[2:] or lines)[0].strip().partition(" [type=")[0].removeprefix("Value error, ")
            raise UserError(f"{name} is {value!r}, which W&B refuses: {reason}") from error


def _check_length(option: str, texts: Iterable[str], most: int) -> None:
    for text in texts:
        if not 1 <= len(text) <= most:
            shown = text if len(text) <= 20 else f"{text[:20]}…"
            raise UserError(f"{option}: {shown!r} has {len(text)} characters; W&B takes 1 to {most}")
