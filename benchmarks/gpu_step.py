"""What masks cost a step on the device: the real masked step against the shortest loop that trains the same model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from _gpu import Part, tell
from _measure import alternate, milliseconds, ratio
from _training import LONG, setup_of, trainings
from torch import Tensor, nn

from sparsekit.config.options import ModelConfig
from sparsekit.training.setup import Setup

MODELS = {
    "ResNet-20, 32 pixels": (ModelConfig("cifar_resnet20"), 32),
    "ResNet-18, 32 pixels": (ModelConfig("cifar_resnet18"), 32),
    "ResNet-50, 224 pixels": (ModelConfig("resnet50"), 224),
}
QUICK = {"ResNet-8, 32 pixels": (ModelConfig("cifar_resnet20", kwargs={"depth": 8}), 32)}
PRECISIONS = ("bf16", "tf32", "fp16")
BATCH, STEPS = 128, 5
MEASURES = {
    "GPU": "between two events around a step that the host issued before, so that no kernel waits for it",
    "host": "what the host needs to issue a step, from an idle GPU",
    "both": "a step of five on end, between two events: the slower of the two",
}


class Timed:
    """Seconds of a step in each measure."""

    def __init__(self, step: Callable[[], object]) -> None:
        self.step = step
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self) -> dict[str, float]:
        began = self._idle()
        self.step()
        host = time.perf_counter() - began
        self._idle()
        torch.cuda._sleep(int(min(3e9 * host, 1e9)))  # cycles: at 2 GHz half as long again as the host needs
        alone = self._between_events(1)
        self._idle()
        return {"GPU": alone, "host": host, "both": self._between_events(STEPS)}

    def _idle(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def _between_events(self, steps: int) -> float:
        self.start.record()
        for _ in range(steps):
            self.step()
        self.end.record()
        torch.cuda.synchronize()
        return self.start.elapsed_time(self.end) / 1e3 / steps


def bare(setup: Setup, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """A step as a few lines of torch take it."""
    sgd = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=setup.dtype == torch.float16)

    def step() -> None:
        with setup.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        sgd.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()

    return step


def measure(part: Part) -> None:
    """A row a model, precision and measure."""
    models = QUICK if part.quick else MODELS
    cases = {f"{name}, {each}": (model, each) for each in PRECISIONS for name, model in models.items()}

    def one(what: str, case: tuple[tuple[ModelConfig, int], str], until: float) -> None:
        (model, pixels), precision = case
        setup = setup_of(model, 16 if part.quick else BATCH, pixels, precision, 1)
        other = copy.deepcopy(setup.model)
        graphs = replace(setup, model=copy.deepcopy(other), config=replace(setup.config, cuda_graphs=True))
        (masked,), (recorded,) = trainings(setup, LONG), trainings(graphs, LONG)
        images, labels = next(masked.batches())
        runs = {"masked": Timed(lambda: masked.step(images, labels)), "bare": Timed(bare(setup, other, images, labels))}
        if recorded.graphed:
            runs["recorded"] = Timed(lambda: recorded.step(images, labels))
        found = alternate(runs, 2 if part.quick else 60, 2, until)
        for kind, measured in product([name for name in runs if name != "bare"], MEASURES):
            ours, bare_times = ([each[measured] for each in found[each_kind]] for each_kind in (kind, "bare"))
            compared = ratio(ours, bare_times)
            tell(
                f"{kind} step, {what}, batch {setup.config.data.batch_size}: {measured}", milliseconds(ours),
                "bare step", milliseconds(bare_times), f"{compared} of its time", compared.pairs,
                times=ours, bare=bare_times,
            )  # fmt: skip

    part.each(cases, one)
