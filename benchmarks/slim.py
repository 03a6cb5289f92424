"""What zeros buy in whole channels: networks pruned for some steps, with and without the channels, on one CPU thread.

python benchmarks/slim.py [--quick]

Each network is pruned to half the channels of every group of coupled layers while an optimizer steps, by
`sparsekit.Pruner`, on random images. Then the one without the channels is held against the masked one, and both take
turns with the dense architecture, in torch and in onnxruntime.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
from _measure import Section, alternate, main, milliseconds, ratio, timed
from torch import nn

from sparsekit import Pruner
from sparsekit.exporting import onnx_file
from sparsekit.exporting.speed import filled
from sparsekit.pruning.channels import Channels

MODELS = (
    "resnet18", "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny", "regnety_004",
    "vit_tiny_patch16_224", "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224",
)  # fmt: skip
STEPS, BATCH = 4, 2
PATTERN = "channels:8"


def at_half(model: nn.Module, image: torch.Tensor) -> float:
    """The sparsity of the prunable weights with half the channels of every group."""
    from sparsekit.config.channel_pattern import ChannelPattern
    from sparsekit.evaluation import cost
    from sparsekit.pruning import coupling, masks

    made = copy.deepcopy(model)
    names = masks.prunable_names(made)
    pattern = ChannelPattern.parse(PATTERN)
    assert pattern
    channels: Channels = coupling.prepared(made, names, image, pattern, "weights", cost.flops)
    return channels.removed(
        [group.size - most for group, most in zip(channels.groups, channels.least(0.5), strict=True)]
    )


def pruned(name: str) -> tuple[nn.Module, nn.Module, nn.Module, torch.Tensor]:
    """The dense network, the masked one after some steps, the one without its channels, and an image."""
    torch.manual_seed(0)
    dense = timm.create_model(name).eval()
    size = dense.pretrained_cfg["input_size"]
    images, labels = torch.randn(BATCH, *size), torch.arange(BATCH)
    model = copy.deepcopy(dense)
    sparsity = at_half(dense, images[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    pruner = Pruner(
        model, optimizer, method="gmp", sparsity=sparsity, epochs=1, steps_per_epoch=STEPS, example=images[:1],
        masks={"pattern": PATTERN, "allocation": "uniform"},
        **{"method.start": 0.0, "method.end": 0.5, "method.interval": 0.25},
    )  # fmt: skip
    model.train()
    for _ in range(STEPS):
        pruner.prune_if_due()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    pruner.finish()
    return dense, model.eval(), pruner.slim().eval(), images[:1]


def difference(masked: nn.Module, small: nn.Module, image: torch.Tensor) -> float:
    """The largest difference of two logits, as a fraction of the largest logit."""
    with torch.no_grad():
        expected, found = masked(image), small(image)
    return float((expected - found).abs().max() / expected.abs().max())


def in_onnxruntime(model: nn.Module, image: torch.Tensor, folder: Path) -> onnx_file.Loaded:
    """The network as onnxruntime runs it."""
    from sparsekit.config.options import ModelConfig
    from sparsekit.data.inputs import InputConfig
    from sparsekit.exporting.model import ExportModel
    from sparsekit.models.saved import SavedModel

    source = SavedModel("benchmark", folder, folder)
    _, channels, *size = image.shape
    inputs = InputConfig(channels, (size[0], size[1]), (0.0,) * channels, (1.0,) * channels)
    made = ExportModel(source, ModelConfig("benchmark"), model, inputs, (), image, False)
    path = folder / "model.onnx"
    onnx_file.write(made, path)
    return onnx_file.load(path, made)


def measure(quick: bool = False, names: tuple[str, ...] = ()) -> Section:
    """A row a network."""
    section = Section(
        "Whole channels taken out",
        ["network", "parameters", "without", "logits differ by", "torch", "without", "times as fast", "onnxruntime"],
    )
    torch.set_num_threads(1)
    for name in names or (("test_resnet", "test_vit") if quick else MODELS):
        dense, masked, small, image = pruned(name)
        dense = filled(dense).eval()  # zeros and denormal numbers of the first weights take other times
        counts = [sum(p.numel() for p in each.parameters()) for each in (dense, small)]
        apart = difference(masked, small, image)
        order = torch.channels_last
        laid, big, little = (copy.deepcopy(each).to(memory_format=order) for each in (image, dense, small))
        with torch.inference_mode():
            runs = {key: timed(partial(one, laid)) for key, one in (("dense", big), ("slim", little))}
            times = alternate(runs, 3 if quick else 15)
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            loaded = {"dense": in_onnxruntime(dense, image, Path(one)), "slim": in_onnxruntime(small, image, Path(two))}
            runs = {key: timed(partial(each.predict, image)) for key, each in loaded.items()}
            others = alternate(runs, 3 if quick else 15)
        section.add(
            name, f"{counts[0]:,}", f"{counts[1]:,}", f"{apart:.1e}", milliseconds(times["dense"]),
            milliseconds(times["slim"]), ratio(times["dense"], times["slim"]), ratio(others["dense"], others["slim"]),
        )  # fmt: skip
    section.notes.append(
        "Half the channels of every group of coupled layers (`--masks.pattern channels:8`), one image at a time, one "
        "thread; in torch in the channels-last order, as sparsekit trains. Weights are random: what is compared is "
        "time, and the masked network with the one without its channels."
    )
    return section


if __name__ == "__main__":
    main(measure, __doc__)
