"""Build libraries that look like CUDA's to torch, on a machine without a GPU.

What is real: torch's dispatch, its checks of devices and types, its allocator, autocast, optimizers, and copies between
host and device. What is not: kernels, matrix products and cuDNN do nothing; they are counted. So a process under these
libraries says whether a path gets through, how often it waits for the device and how much it launches, and nothing
about numbers.

A library is its C++ source beside this file and, for every other function of the real library, a stub that returns 0.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from glob import glob
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
SITE = Path(torch.__file__).parents[1]
INCLUDES = [
    SITE / "nvidia/cu13/include",
    SITE / "nvidia/cudnn/include",
    SITE / "nvidia/nccl/include",
    SITE / "triton/backends/nvidia/include",  # for crt/, which NVIDIA's wheels leave out
    *map(Path, glob("/usr/local/cuda*/include")),
]
LIBRARIES = {  # each with its source, and the file that names its functions; the first one holds the counts
    "libcudart.so.13": ("runtime.cpp", SITE / "nvidia/cu13/lib/libcudart.so.13"),
    "libcublasLt.so.13": ("blaslt.cpp", SITE / "nvidia/cu13/lib/libcublasLt.so.13"),
    "libcublas.so.13": ("blas.cpp", SITE / "nvidia/cu13/lib/libcublas.so.13"),
    "libcudnn.so.9": ("dnn.cpp", SITE / "nvidia/cudnn/lib/libcudnn.so.9"),
    "libnccl.so.2": ("nccl.cpp", SITE / "nvidia/nccl/lib/libnccl.so.2"),
    "libcuda.so.1": ("driver.cpp", SITE / "nvidia/cu13/include/cuda.h"),  # no wheel has the driver
}
COUNTED = {
    "launches": r"_*cudaLaunch.*Kernel.*|cuLaunch.*|cublas.*([Gg]emm|gemv|dot).*|cublasLtMatmul"
    r"|cudnn(BackendExecute|BatchNormalization(Forward|Backward).*)",
    "waits": r"cuda(Device|Stream|Event)Synchronize",
}


def obstacle() -> str:
    """Why the libraries cannot be built here; empty if they can."""
    if not (torch.version.cuda or "").startswith("13."):
        return f"this torch is built for CUDA {torch.version.cuda}, not 13"
    if missing := [tool for tool in ("g++", "nm") if shutil.which(tool) is None]:
        return f"there is no {missing[0]} here"
    for name in ("cuda_runtime_api.h", "crt/host_defines.h", "cudnn.h", "nccl.h"):
        if not any((folder / name).is_file() for folder in INCLUDES):
            return f"CUDA's header {name} is not here"
    return next((f"{path} is not here" for _, path in LIBRARIES.values() if not path.is_file()), "")


def key() -> str:
    """A word for what the libraries are built from."""
    parts = [file.read_bytes() for file in [*sorted(SOURCES.glob("*.[ch]*")), Path(__file__)]]
    return hashlib.sha256(b"".join([torch.__version__.encode(), str(SITE).encode(), *parts])).hexdigest()[:16]


def build(folder: Path) -> None:
    """Build the libraries into an existing folder."""
    for name, (source, real) in LIBRARIES.items():
        _build(folder, name, source, real)


def _build(folder: Path, library: str, source: str, real: Path) -> None:
    own, stubs, versions, out = (folder / f"{library}{end}" for end in (".o", ".cpp", ".map", ""))
    _run("g++", "-O1", "-fPIC", "-c", SOURCES / source, "-o", own, *(f"-I{folder}" for folder in INCLUDES))
    wanted = re.findall(r"\bcu[A-Z]\w+", real.read_text()) if real.suffix == ".h" else _names(real)
    missing = sorted(set(wanted) - set(_names(own)))
    stubs.write_text('#include "counts.h"\nextern "C" {\n' + "".join(map(_stub, missing)) + "}\n")
    versions.write_text(f"{library} {{ global: *; }};\n")  # torch asks for functions by library and version
    _run(
        "g++", "-shared", "-fPIC", f"-I{SOURCES}", own, stubs, "-o", out,
        f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}",
    )  # fmt: skip


def _names(path: Path) -> list[str]:
    """The functions of CUDA that a library or an object file defines."""
    symbols = _run("nm", "--defined-only", *(["-D"] if path.suffix != ".o" else []), path)
    return re.findall(r" [TW] ((?:_*cu|nccl)\w+)", symbols)


def _stub(name: str) -> str:
    counts = [f"nullcuda_{what}++; " for what, which in COUNTED.items() if re.fullmatch(which, name)]
    refusal = "if (nullcuda_capturing) return 900; " if re.fullmatch(COUNTED["waits"], name) else ""
    return f"int {name}() {{ {''.join(counts)}{refusal}return 0; }}\n"


def _run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
