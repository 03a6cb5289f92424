"""Distributions in a folder of their own, for tests: made up, or really built and installed there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsekit.plugins.registry import discover


def distribution(
    site: Path, name: str, entry_points: str | bytes, modules: dict[str, str] | None = None, version: str = "1.2"
) -> Path:
    """Make a distribution by its entry_points.txt; returns that file."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    file = info / "entry_points.txt"
    file.write_bytes(entry_points.encode() if isinstance(entry_points, str) else entry_points)
    for module, source in (modules or {}).items():
        path = site / Path(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    discover.cache_clear()
    return file


@contextmanager
def visible(site: Path) -> Iterator[Path]:
    """The folder at the end of sys.path; what was imported from it is forgotten afterwards."""
    site.mkdir(parents=True, exist_ok=True)
    before, path = set(sys.modules), list(sys.path)
    sys.path.append(str(site))
    discover.cache_clear()
    try:
        yield site
    finally:
        sys.path[:] = path
        discover.cache_clear()
        for module in set(sys.modules) - before:
            if str(site) in str(getattr(sys.modules[module], "__file__", "")):
                del sys.modules[module]


def offline(site: Path) -> dict[str, str]:
    """An environment in which `pip install [-e] PATH` needs no network and installs into `site`, which comes first."""
    site.mkdir(parents=True, exist_ok=True)
    # what is installed with -e is a .pth file, which Python reads in folders of sites alone
    (site / "sitecustomize.py").write_text("import os, site\nsite.addsitedir(os.path.dirname(__file__))\n")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # so spelt, it means what `--no-build-isolation` means
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
