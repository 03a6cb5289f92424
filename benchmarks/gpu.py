"""The CUDA part, in one command within ten minutes: masks on ResNet-50, replicas side by side, a pruning step.

    python benchmarks/gpu.py [--quick]

Ends with 3 and one line where there is no CUDA device. Batches are random and already on the device: what is measured
is the step, not the input.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from _measure import FASHION_MNIST, NO_CUDA, Section, alternate, main, milliseconds, ratio, sparsekit, timed
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsekit.api import Budget, Segment, Stage
from sparsekit.config.options import MasksConfig
from sparsekit.methods.gmp import GMP
from sparsekit.models.state import State, cpu_state_dict
from sparsekit.pruning import masks, prune


def steps(model: nn.Module, batch: int, size: int, masked: bool, count: int) -> Callable[[], float]:
    """Seconds a step, over `count` of them, in bf16; with masks as our step holds them, or bare."""
    model = model.cuda().to(memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, size, size, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    weights = [model.get_parameter(name) for name in masks.prunable_names(model)] if masked else []
    kept = [(torch.rand_like(weight) < 0.1).to(weight.dtype) for weight in weights]

    def run() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            with torch.no_grad():
                if weights:
                    torch._foreach_mul_([weight.grad for weight in weights], kept)
                optimizer.step()
                if weights:
                    torch._foreach_mul_(weights, kept)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    return run


def prune_runs() -> dict[str, Callable[[], float]]:
    """A global pruning step of a model on the device: ours with the copies to the host and back, and torch's."""
    model = timm.create_model("resnet50").cuda()
    names = masks.prunable_names(model)
    stage = Stage(Budget(1.0, 0.9), (Segment(0.9, 1.0),), 0)

    dense = cpu_state_dict(model)

    def ours() -> float:
        model.load_state_dict(dense)
        torch.cuda.synchronize()

        def work() -> None:
            tensors = cpu_state_dict(model)
            state = State(tensors, masks.full({name: tensors[name] for name in names}))
            pruned, _ = prune.prune(GMP(), state, stage, MasksConfig(), 0)
            model.load_state_dict(tensors | pruned.weights)
            torch.cuda.synchronize()

        return timed(work)()

    def theirs() -> float:
        other = timm.create_model("resnet50").cuda()
        layers = [(other.get_submodule(name.rpartition(".")[0]), "weight") for name in names]
        torch.cuda.synchronize()

        def work() -> None:
            torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.9)
            torch.cuda.synchronize()

        return timed(work)()

    return {"ours": ours, "torch": theirs}


def fit_seconds(replicas: int, executor: str | None, epochs: int) -> float | str:
    """The wall time of a run of ResNet-20's size on Fashion-MNIST, or why there is none.

    timm's stem makes 32×32 maps of 128 pixels, as large as CIFAR's: from there on the blocks are ResNet-20's nine.
    """
    model = ["--model.name", "resnet18", "--model.kwargs", "{layers: [3, 3, 2, 1], channels: [16, 32, 64, 64]}"]
    data = ["--data.name", "fashion_mnist", "--data.root", FASHION_MNIST, "--data.image_size", "128"]
    chosen = ["--replicas.executor", executor] if executor else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ["--replicas.count", str(replicas), "--replicas.start", "0.0", "--epochs", str(epochs), *chosen]
        common = ["--data.batch_size", "128", "--device", "cuda", "--wandb.mode", "disabled", "--out", str(out)]
        _, trouble = sparsekit("fit", *model, *data, *options, *common)
        if trouble:
            return trouble
        return float(json.loads((out / "summary.json").read_text())["wall_seconds"])


def replica_cost(section: Section, rounds: int) -> None:
    """Three replicas side by side against one, of two further epochs each, so that loading cancels out."""
    many, one = [], []
    for _ in range(rounds):
        for times, replicas, executor in ((many, 3, "vectorized"), (one, 1, None)):
            short, long = (fit_seconds(replicas, executor, epochs) for epochs in (1, 3))
            if isinstance(short, str) or isinstance(long, str):
                section.add("three replicas", f"did not run: {short if isinstance(short, str) else long}"[:160])
                return
            times.append(long - short)
    what = "three replicas of a CIFAR-size ResNet-20, batch 128, vectorized"
    section.add(what, milliseconds(many), "one replica", milliseconds(one), ratio(many, one), rounds)


def measure(quick: bool = False) -> Section:
    """Masked against bare steps, replicas side by side, and a pruning step."""
    section = Section("CUDA", ["what", "sparsekit", "against", "", "ratio [95 % interval]", "rounds"])
    properties = torch.cuda.get_device_properties(0)
    section.notes.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}.")
    rounds, batch = (5, 64) if quick else (25, 128)
    runs = {
        name: steps(timm.create_model("resnet50", num_classes=10), batch, 224, name == "masked", 10)
        for name in ("masked", "bare")
    }
    times = alternate(runs, rounds, warmup=2)
    share = f"{ratio(times['bare'], times['masked'])} of its images/s"
    what = f"step, ResNet-50 at 224 pixels, bf16, batch {batch}"
    section.add(what, milliseconds(times["masked"]), "bare step", milliseconds(times["bare"]), share, rounds)
    del runs
    torch.cuda.empty_cache()
    times = alternate(prune_runs(), 3 if quick else 7)
    faster = f"{ratio(times['torch'], times['ours'])} times faster"
    cells = milliseconds(times["ours"]), "global_unstructured", milliseconds(times["torch"])
    section.add("pruning step, ResNet-50, copies to the host and back included", *cells, faster, len(times["ours"]))
    replica_cost(section, 1 if quick else 3)
    return section


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device is to be had here; nothing was measured", file=sys.stderr)
        raise SystemExit(NO_CUDA)
    main(measure, __doc__)
