"""Whether W&B would be online: the wanted mode, and the credentials that it would find. They are never kept."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlsplit

from sparsekit.files import expanded

_CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Two names of one service; `wandb login` has written netrc entries under either."""


def wanted_mode(mode: str) -> str:
    """`--wandb.mode`, and where that is `auto`, what `WANDB_MODE` says: auto, online, offline or disabled."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)


def find_keys(base_url: str) -> list[str]:
    """The credentials that W&B would find for a server, from the environment or netrc; empty when logged out."""
    keys = [os.environ.get("WANDB_API_KEY"), os.environ.get("WANDB_IDENTITY_TOKEN_FILE")]
    host = urlsplit(base_url).netloc
    keys += _netrc_keys(_CLOUD_HOSTS if host in _CLOUD_HOSTS else (host,))
    return [key for key in keys if key]


def _netrc_keys(hosts: tuple[str, ...]) -> list[str | None]:
    named = os.environ.get("NETRC")
    paths = [expanded(name) for name in ([named] if named else ["~/.netrc", "~/_netrc"])]
    path = next((path for path in paths if path.is_file()), None)
    try:
        entries = netrc.netrc(path) if path else None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return []
    found = [entries.authenticators(host) for host in hosts] if entries else []
    return [entry[2] for entry in found if entry]
