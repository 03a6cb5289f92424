"""`evaluate` with the whole corruption suite against bare forward passes over as many images, with a ResNet-18.

python benchmarks/evaluate_speed.py [--quick]

Takes turns: the suite on some images, then forward passes alone over as many ready batches. Fewer images than a data
set's 10,000 give the same ratio on a CPU, in minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import timm
import torch
from _measure import Section, main, ratio

from sparsekit.data import ImageData
from sparsekit.data.images import Normaliser
from sparsekit.evaluation.corruptions import KINDS, SEVERITIES, Corruption
from sparsekit.evaluation.evaluate import Evaluator
from sparsekit.models.device import autocast, choose_device, use_precision
from sparsekit.tasks.classification import Classification

SIDE = 32


def data(images: int, device: torch.device) -> ImageData:
    """Random colour images; the training and held-out splits are not used."""
    pixels = torch.randint(256, (images, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.arange(images) % 10
    few = (pixels[:20], labels[:20])
    splits = {"train": few, "held_out": few, "test": (pixels, labels)}
    return ImageData(
        splits, num_classes=10, batch_size=20, shift=0, flip=False, device=device, channels_last=True
    )  # fmt: skip


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(quick: bool = False) -> Section:
    """A row a kind of corruption, all five severities of it, and one for the whole suite."""
    device = choose_device("auto")
    images, rounds = (200, 2) if quick else (10_000 if device.type == "cuda" else 1_000, 5)
    context = autocast(device, use_precision("auto", device))
    source = data(images, device)
    model = timm.create_model("resnet18", num_classes=10).to(device).to(memory_format=torch.channels_last).eval()
    bench = Evaluator(
        model, Normaliser((0.5,) * 3, (0.25,) * 3, device, torch.channels_last), context, Classification()
    )
    ready = [bench.normalise(raw) for raw, _ in source.raw_batches("test")]

    def bare() -> None:
        with torch.no_grad(), context:
            for batch in ready:
                model(batch)

    def suite(corruption: Corruption | None) -> object:
        return bench.measure(source.raw_batches("test"), corruption)

    passes = [("clean", None), *((k, Corruption(k, level, 0, device)) for k in KINDS for level in SEVERITIES)]
    found: dict[str, list[tuple[float, float]]] = {"whole suite": []}
    bare()
    for _ in range(rounds):
        turn = [(k, (seconds(bare, device), seconds(partial(suite, c), device))) for k, c in passes]
        for kind, pair in turn:
            found.setdefault(kind, []).append(pair)
        found["whole suite"].append((sum(pair[0] for _, pair in turn), sum(pair[1] for _, pair in turn)))
    header = ["what", "images/s", "bare forward passes", "ratio [95 % interval]", "pairs"]
    section = Section(f"Evaluation under corruptions (ResNet-18, {SIDE}×{SIDE}, {device.type})", header)
    for kind, pairs in found.items():
        alone, ours = zip(*pairs, strict=True)
        seen = images * (len(passes) if kind == "whole suite" else 1)
        speeds = [f"{seen / median(times):,.0f}" for times in (ours, alone)]
        share = ratio(alone, ours)
        section.add(kind.replace("_", " "), *speeds, f"{share} of its images/s", share.pairs)
    section.notes.append(
        f"{images:,} images a pass. A corruption is all five severities of it, made by the batch on the device."
    )
    return section


if __name__ == "__main__":
    main(measure, __doc__)
