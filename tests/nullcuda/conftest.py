"""The fixture `nullcuda`: child processes that believe in CUDA devices; `libraries.py` says what of them is real."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from nullcuda import libraries

HERE = Path(__file__).parent


@dataclass(frozen=True)
class NullCuda:
    """Starts children under the libraries in a folder; keywords are a child's environment, "" for none."""

    folder: Path

    def start(self, script: str, *arguments: str, ranks: int = 1, **environment: str) -> subprocess.Popen[str]:
        """Start one of the scripts beside this file, under torchrun where there are several ranks."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {
            "LD_PRELOAD": " ".join(libraries.LIBRARIES),  # torch's own paths come before LD_LIBRARY_PATH
            "LD_LIBRARY_PATH": str(self.folder),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),  # what is built for this device is for no other
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # zeros, where a kernel should have written, not something stale
        } | environment
        return subprocess.Popen(
            [sys.executable, *(torchrun if ranks > 1 else []), str(HERE / script), *arguments],
            env={name: value for name, value in (os.environ | environment).items() if value}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(
        self, script: str, *arguments: str, expect: int = 0, stdin: str = "", ranks: int = 1, **environment: str
    ) -> str:
        """Run a script to its end; what it printed."""
        process = self.start(script, *arguments, ranks=ranks, **environment)
        printed, _ = process.communicate(stdin, timeout=1200)
        assert process.returncode == expect, printed[-3000:]
        return printed


@pytest.fixture(scope="session")
def nullcuda(request: pytest.FixtureRequest) -> NullCuda:
    """The libraries, built once for a version of torch; skips where they cannot be built."""
    if reason := libraries.obstacle():
        pytest.skip(reason)
    cache = request.config.cache.mkdir("nullcuda")
    folder = cache / libraries.key()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's workers share them
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            libraries.build(folder)
            (folder / "complete").touch()
    return NullCuda(folder)
