"""Make the folder that a machine without a network needs to run gpu.py: everything but torch, torchvision and timm.

    python benchmarks/carry.py [FOLDER] [--python 3.12] [--data DIR]       # or make gpu-bundle
    sh FOLDER/run.sh                                                       # there

pip works out the wheels for that Python on x86-64 Linux. W&B and matplotlib stay away: gpu.py asks for neither.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from _measure import FASHION_MNIST

ROOT = Path(__file__).parents[1]
THERE = {"torch", "torchvision", "timm"}
WITH_THEM = {"numpy", "pyyaml", "safetensors", "jinja2"}
NOT_USED = {"wandb", "matplotlib"}
TESTS = ("pytest", "pytest-timeout", "hypothesis")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_24_x86_64", "manylinux_2_28_x86_64")
RUN = """#!/bin/sh
# Measure on this machine, which has torch, torchvision and timm: sh run.sh [options of benchmarks/gpu.py]
set -e
cd "$(dirname "$0")"
python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade --target site wheels/*.whl
PYTHONPATH="$PWD/site" exec python3 benchmarks/gpu.py --data data --json gpu.json "$@"
"""


def pip(*arguments: object) -> None:
    """Run pip, which says nothing but what went wrong."""
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), "--quiet"], cwd=ROOT, check=True)


def requirements(wheel: Path) -> list[str]:
    """What a wheel needs that is not there already."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    return [line for line in needed if re.split(r"[^\w.-]", line)[0].lower() not in THERE | WITH_THEM | NOT_USED]


def carry(folder: Path, python: str, data: Path) -> None:
    """Make the folder."""
    if folder.exists():
        if not (folder / "run.sh").is_file():
            raise SystemExit(f"{folder} was not made by this script; name another folder")
        shutil.rmtree(folder)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT, *plugins)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    pip("download", "--dest", wheels, *target, *requirements(next(wheels.glob("sparsekit_soups-*.whl"))), *TESTS)
    for name in ("benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's options
    (folder / "data").mkdir()
    for file in data.glob("*-ubyte.gz"):
        shutil.copy(file, folder / "data")
    (folder / "run.sh").write_text(RUN)


def main() -> None:
    """The command line: make the folder, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist" / "gpu", help="made anew")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--data", type=Path, default=Path(FASHION_MNIST), help="folder of Fashion-MNIST's .gz files")
    options = parser.parse_args()
    carry(options.folder, options.python, options.data)
    total = 0
    for part in sorted(options.folder.iterdir()):
        files = [path for path in sorted(part.rglob("*")) if path.is_file()] if part.is_dir() else [part]
        size = sum(path.stat().st_size for path in files)
        total += size
        print(f"{size / 1e6:8.2f} MB  {part.name}")
        for path in files if part.name in ("wheels", "data") else ():
            print(f"{path.stat().st_size / 1e6:8.2f} MB    {path.name}")
    print(f"{total / 1e6:8.2f} MB  in all; there: sh {options.folder.name}/run.sh")
    if not list((options.folder / "data").iterdir()):
        print(f"{options.data} has no Fashion-MNIST: its part of gpu.py will not run", file=sys.stderr)


if __name__ == "__main__":
    main()
