"""`evaluate` with the whole corruption suite against bare forward passes over as many images, with a ResNet-18.

    python benchmarks/evaluate_speed.py [--images 10000] [--rounds 3] [--kinds KIND …] [--size 32]

Takes turns: the suite on some images, then forward passes alone over as many ready batches. Prints the median ratio of
their speeds, which does not depend on how fast the machine is, and the time of each kind in parts of a forward pass.
The whole of 10,000 images and 81 passes takes some minutes on a GPU and hours on a CPU; fewer images give the same
ratio.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import timm
import torch

from sparsekit.corruptions import KINDS, SEVERITIES, Corruption
from sparsekit.data import ImageData
from sparsekit.data.images import Normaliser
from sparsekit.setup import autocast, choose_device, choose_dtype
from sparsekit.suite import Bench


def data(images: int, size: int, device: torch.device) -> ImageData:
    """Random colour images; the training and held-out splits are not used."""
    pixels = torch.randint(256, (images, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(images) % 10
    few = (pixels[:20], labels[:20])
    splits = {"train": few, "held_out": few, "test": (pixels, labels)}
    return ImageData(
        splits, num_classes=10, batch_size=20, shift=0, flip=False, device=device, channels_last=True
    )  # fmt: skip


def seconds(work: object, device: torch.device) -> float:
    """How long a call takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(images: int, rounds: int, size: int, kinds: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """The suite's speed as a share of the bare speed, and each kind's own."""
    device = choose_device("auto")
    context = autocast(device, choose_dtype("auto", device))
    source = data(images, size, device)
    model = timm.create_model("resnet18", num_classes=10).to(device).to(memory_format=torch.channels_last).eval()
    bench = Bench(model, Normaliser((0.5,) * 3, (0.25,) * 3, device, torch.channels_last), context, 10)
    ready = [bench.normalise(raw) for raw, _ in source.raw_batches("test")]

    def bare() -> None:
        with torch.no_grad(), context:
            for batch in ready:
                model(batch)

    found: dict[str, list[float]] = {kind: [] for kind in ("clean", *kinds)}
    everything = []
    bare()
    for _ in range(rounds):
        suite = forward = 0.0
        for kind in found:
            for severity in SEVERITIES if kind != "clean" else (0,):
                corruption = Corruption(kind, severity, 0, device) if severity else None
                alone = seconds(bare, device)
                ours = seconds(lambda c=corruption: bench.measure(source.raw_batches("test"), c), device)
                found[kind].append(alone / ours)
                suite, forward = suite + ours, forward + alone
        everything.append(forward / suite)
    return median(everything), {kind: median(values) for kind, values in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    ratio, each = measure(options.images, options.rounds, options.size, tuple(options.kinds))
    for kind, value in each.items():
        print(f"{kind.replace('_', ' '):16} {value:.2f}")
    print(f"{'whole suite':16} {ratio:.2f} of the speed of bare forward passes ({options.images:,} images)")


if __name__ == "__main__":
    main()
