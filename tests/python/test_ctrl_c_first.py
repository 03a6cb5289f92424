"""Ctrl-C while the first call still imports torch: the next call works, in the same Python."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch.optim", "torch._C", "torch.distributed"])
def test_the_next_call_works(tmp_path: Path, module: str) -> None:
    code = f"""
        import os, signal, sys

        class Interrupts:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), signal.SIGINT)
                    for _ in range(1000):
                        pass

        sys.meta_path.insert(0, Interrupts())
        import sparsekit
        assert "torch" not in sys.modules
        previous = signal.getsignal(signal.SIGINT)
        for _ in range(2):
            try:
                sparsekit.evaluate(sys.argv[1])
            except (KeyboardInterrupt, sparsekit.UserError) as error:
                print(type(error).__name__)
        assert signal.getsignal(signal.SIGINT) is previous
        import torch
        print(torch.ones(2).sum().item())
    """
    (tmp_path / "model.safetensors").touch()
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.returncode) == (["KeyboardInterrupt", "UserError", "2.0"], 0), done.stderr
