"""benchmarks/gpu.py with child.py's mend, in its parts' processes, too, which start this file again."""

from __future__ import annotations

import sys
from pathlib import Path

import child  # noqa: F401

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu

if __name__ == "__main__":
    gpu.main()
