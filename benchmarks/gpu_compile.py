"""What --compile costs before the first step, and what it gains a step; torch's caches are new."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import replace

import torch
from _gpu import Part, tell
from _measure import alternate, milliseconds, ratio
from _training import LONG, seconds, setup_of, trainings
from gpu_step import BATCH, MODELS, QUICK, STEPS

from sparsekit.config.options import ModelConfig
from sparsekit.training.setup import forward


def measure(part: Part) -> None:
    """A row a model, and one for its first step."""

    def one(what: str, case: tuple[ModelConfig, int], until: float) -> None:
        model, pixels = case
        setup = setup_of(model, 16 if part.quick else BATCH, pixels, replicas=1)
        torch.compiler.reset()
        compiling = replace(setup, compiled=torch.compile(forward))
        (compiled,), (plain,) = trainings(compiling, LONG, [copy.deepcopy(setup.model)]), trainings(setup, LONG)
        images, labels = next(plain.batches())
        plain.step(images, labels)  # loads the kernels that both use
        first = seconds(lambda: compiled.step(images, labels), 1)
        tell(f"compiled step, {what}, the first", f"{first:.1f} s", first=[first])
        runs = {
            key: lambda training=training: seconds(lambda: training.step(images, labels), STEPS)
            for key, training in (("compiled", compiled), ("plain", plain))
        }
        times = alternate(runs, 2 if part.quick else 60, 2, until)
        compared = ratio(times["compiled"], times["plain"])
        tell(
            f"compiled step, {what}, batch {setup.config.data.batch_size}", milliseconds(times["compiled"]),
            "not compiled", milliseconds(times["plain"]), f"{compared} of its time", compared.pairs, **times,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        part.each(QUICK if part.quick else MODELS, one)
