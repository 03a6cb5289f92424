"""What masks cost a training step, and how our loop stands against loops that others would write.

    python benchmarks/step.py [--quick]

The bare loop is the shortest that trains the same model: forward, loss, backward, optimizer step, a learning rate set
at each step; no masks, no logging; its optimizer steps as torch's default does, ours in torch's fused way. The loop
with `torch.nn.utils.prune` reads PIL images through a DataLoader of two workers, augments them as ours are
(torchvision's RandomCrop and RandomHorizontalFlip), and prunes with torch's hooks; Lightning's `ModelPruning` does that
inside its Trainer. Steps are measured twice, by the clock and in processor time, which says the same on an idle machine
and more on a busy one.
"""

from __future__ import annotations

import gzip
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _measure import FASHION_MNIST, Section, alternate, main, milliseconds, ratio
from _training import SPARSITY, Once, trainings
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sparsekit.config.options import DataConfig, FitConfig, ReplicasConfig, WandbConfig
from sparsekit.merges.none import NoMerge
from sparsekit.pruning import masks
from sparsekit.training.prepare import prepare
from sparsekit.training.replica import Training, train
from sparsekit.training.setup import Setup


def setup_for(data: DataConfig, epochs: int = 1, mlp: bool = False) -> Setup:
    """What a run on the CPU with these data works with; on request with LeNet-300-100 as its model."""
    config = FitConfig(
        Once(),
        NoMerge(),
        sparsity=SPARSITY,
        epochs=epochs,
        replicas=ReplicasConfig(1),
        data=data,
        wandb=WandbConfig("disabled"),
        device="cpu",
    )
    setup = prepare(config)
    if not mlp:
        return setup
    model = lenet()
    return replace(setup, model=model, prunable=tuple(masks.prunable_names(model)))


def lenet() -> nn.Sequential:
    """784-300-100-10."""
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def ours(setup: Setup, steps: int) -> Training:
    """A replica about to be trained for so many steps, its masks in place."""
    return trainings(setup, steps)[0]


class Bare:
    """The shortest loop."""

    def __init__(self, model: nn.Module, rate: float = 0.01) -> None:
        self.model, self.rate = model.train(), rate
        self.optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def loop(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """All of them."""
        for images, labels in batches:
            self.step(images, labels)


def clock(work: Callable[[], object], timer: Callable[[], float] = time.perf_counter) -> float:
    """Seconds."""
    began = timer()
    work()
    return timer() - began


# --- one step, and the loop around it -----------------------------------------------------------------


def step_runs(data: DataConfig, rounds: int, timer: Callable[[], float]) -> dict[str, Callable[[], float]]:
    """One step with masks, the same without, on one batch."""
    masked = ours(setup_for(data), 4 * rounds)
    dense = setup_for(data)
    bare = Bare(dense.model)
    images, labels = next(dense.data.train_batches(0, 1))
    return {
        "masked": lambda: clock(lambda: masked.step(images, labels), timer),
        "dense": lambda: clock(lambda: bare.step(images, labels), timer),
    }


def loop_runs(data: DataConfig, steps: int, mlp: bool = False) -> dict[str, Callable[[], float]]:
    """Whole training loops over the same batches, which each loads itself."""
    setup, other = setup_for(data, mlp=mlp), setup_for(data, mlp=mlp)
    bare = Bare(other.model)

    def fit() -> float:
        work = ours(setup, steps)
        return clock(lambda: train(work, lambda _: None))

    def by_hand() -> float:
        batches = other.data.train_batches(ours(setup, steps).seed, steps)
        return clock(lambda: bare.loop(batches))

    return {"ours": fit, "bare loop": by_hand}


# --- others' loops ------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, int]]):
    """Fashion-MNIST as torchvision reads it: a PIL image through transforms, one at a time."""

    def __init__(self, folder: str) -> None:
        images, labels = (Path(folder) / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
        self.images = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        self.labels = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(28, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(0.286, 0.353),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def loader(batch_size: int) -> DataLoader[tuple[Tensor, int]]:
    """Two workers."""
    pictures = Pictures(FASHION_MNIST)
    return DataLoader(pictures, batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)


def torch_loop(model: nn.Module, batch_size: int, steps: int) -> Callable[[], float]:
    """Seconds of so many steps with torch's hooks and a DataLoader that is already running."""
    layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=SPARSITY)
    bare, batches = Bare(model), endless(loader(batch_size))

    def run() -> float:
        next(batches)
        return clock(lambda: bare.loop(islice(batches, steps)))

    return run


def endless(batches: DataLoader[tuple[Tensor, int]]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


def lightning_loop(make: Callable[[], nn.Module], batch_size: int, steps: int) -> Callable[[], float]:
    """Seconds of so many steps in Lightning's Trainer with ModelPruning, after the first few.

    Raises:
        ImportError: Lightning is not installed.
    """
    import logging

    import lightning
    from lightning.pytorch.callbacks import ModelPruning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    batches, first = loader(batch_size), 3

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Bare(self.model).optimizer

    class Clock(lightning.Callback):
        began = ended = 0.0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.began = time.perf_counter() if index == first - 1 else self.began
            self.ended = time.perf_counter()

    def run() -> float:
        clock = Clock()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=first + steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelPruning("l1_unstructured", amount=SPARSITY, use_global_unstructured=True), clock],
        )
        trainer.fit(Module(), batches)
        return clock.ended - clock.began

    return run


# --- telling ------------------------------------------------------------------------------------------


def measure(quick: bool = False) -> Section:
    """Time over time for a step; images a second over images a second for loops."""
    section = Section(
        "Training step and loop (90 % sparse)",
        ["what", "sparsekit", "against", "", "ratio [95 % interval]", "pairs"],
    )
    digits, fashion = DataConfig(), DataConfig("fashion_mnist", FASHION_MNIST, batch_size=128)
    for name, data in (("digits, batch 50", digits), ("Fashion-MNIST, batch 128", fashion)):
        for kind, timer in (("", time.perf_counter), (", processor time", time.process_time)):
            rounds = 200 if data is digits or not quick else 60
            times = alternate(step_runs(data, rounds, timer), rounds, warmup=5)
            cells = milliseconds(times["masked"]), "dense step", milliseconds(times["dense"])
            share = f"{ratio(times['masked'], times['dense'])} of its time"
            section.add(f"step, small ResNet, {name}{kind}", *cells, share, rounds)
    rounds, steps = (5, 60) if quick else (15, 150)
    for name, data, mlp in (("small ResNet, digits", digits, False), ("LeNet-300-100, Fashion-MNIST", fashion, True)):
        times = alternate(loop_runs(data, steps, mlp), rounds)
        tell(section, f"loop, {name}", times, "bare loop", steps * data.batch_size)
    rounds, steps = (3, 60) if quick else (9, 200)
    for name, mlp in (("LeNet-300-100", True), ("small ResNet", False)):
        runs = loop_runs(fashion, steps, mlp)
        make = lenet if mlp else partial(build, fashion)
        others: dict[str, Callable[[], float]] = {"DataLoader and torch.nn.utils.prune": torch_loop(make(), 128, steps)}
        try:
            others["Lightning with ModelPruning"] = lightning_loop(make, 128, steps)
        except ImportError:
            section.notes.append("Lightning is not installed here (`pip install -e '.[bench]'`), so not measured.")
        times = alternate({"ours": runs["ours"], **others}, rounds)
        for other in others:
            tell(section, f"loop, {name}, Fashion-MNIST", times, other, steps * 128)
    section.notes.append(__doc__.split("\n\n", 2)[2].replace("\n", " ").strip())
    return section


def build(data: DataConfig) -> nn.Module:
    """The default model, in the memory order that torch.nn.utils.prune can handle."""
    return setup_for(data).model.to(memory_format=torch.contiguous_format)


def tell(section: Section, what: str, times: dict[str, list[float]], other: str, images: int) -> None:
    """A row of images a second."""
    rates = [f"{images / median(times[key]):,.0f} images/s" for key in ("ours", other)]
    share = f"{ratio(times[other], times['ours'])} of its images/s"
    section.add(what, rates[0], other, rates[1], share, len(times["ours"]))


if __name__ == "__main__":
    main(measure, __doc__)
