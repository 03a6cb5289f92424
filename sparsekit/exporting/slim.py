"""The network without its pruned channels: an ordinary dense one, smaller and faster everywhere.

The directory is one that timm loads where timm's arguments can say how many channels each layer has. Else it also holds
the network itself, as a `torch.export` program, as an ONNX file, and a loader of a few lines; timm refuses its weights.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor, nn

from sparsekit.errors import RunError, UserError
from sparsekit.exporting import onnx_file, speed, timm_directory, torch_program
from sparsekit.exporting.formats import Format, Loaded
from sparsekit.exporting.model import ExportModel
from sparsekit.files import make_readable, save_tensors, write_json
from sparsekit.models import kept_norm, slim
from sparsekit.models.create import build_model, save_model
from sparsekit.models.registered import is_registered
from sparsekit.models.state import cpu_state_dict
from sparsekit.plugins.objects import is_object
from sparsekit.pruning import coupling, masks
from sparsekit.pruning.channels import Array, Channels

PROGRAM, ONNX = "model.pt2", "model.onnx"
_TOLERANCE = 1e-4
_LOADER = '''"""Load this network: torch alone is needed, and not the code that made it."""

from pathlib import Path

import torch


def load() -> torch.nn.Module:
    """The network in evaluation mode; it takes normalised images, float32 [N, {channels}, {height}, {width}]."""
    return torch.export.load(Path(__file__).with_name("{program}")).module()
'''
_PEAK = """
import sys, torch

def kilobytes(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.set_num_threads(1)
model, images = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # VmHWM begins anew
before = kilobytes("VmRSS")
with torch.inference_mode():
    model(images)
print(kilobytes("VmHWM") - before)
"""
"""What a forward pass takes beside the weights; Linux alone says it."""


# --- which channels ----------------------------------------------------------------------------------


def removed(model: nn.Module, example: Tensor) -> tuple[Channels, list[Array]] | None:
    """The channels of which a model has nothing but zeros, and for each group which are kept; None without any.

    Args:
        model: The model, on the CPU in evaluation mode.
        example: Inputs for one forward pass.
    """
    channels = coupling.find(model, masks.prunable_names(model), example)
    nonzero = {name: model.state_dict()[name] != 0 for name in (*channels.prunable, *channels.beside)}
    every = replace(channels, prunable=(*channels.prunable, *channels.beside))
    layers = dict(model.named_modules())
    kept = []
    for group, flags in zip(channels.groups, every.kept(nonzero), strict=True):
        # a plain LayerNorm counts channels of zeros, so that the network without them would be another one
        counted = [path for path in group.norms if not isinstance(layers[path], kept_norm.HELD)]
        alive = np.ones_like(flags) if counted or not flags.any() else flags
        for path in group.norms if not counted else ():
            own = next(entry for entry in group.entries if entry.name == f"{path}.weight")
            alive |= layers[path].get_buffer(kept_norm.NAME).numpy()[own.indices].any(axis=1)
        kept.append(alive)
    return (channels, kept) if any(not flags.all() for flags in kept) else None


def small(export_model: ExportModel) -> nn.Module:
    """The model without the channels of which it has nothing but zeros; raises UserError if it has none."""
    found = removed(export_model.model, export_model.images[:1])
    if found is None:
        raise UserError(
            f"--format slim: {export_model.source.path} has no pruned channel; prune with --masks.pattern channels"
        )
    channels, kept = found
    return slim.without(export_model.model, channels.axes(kept)).eval()


def check(export_model: ExportModel) -> None:
    """Raise UserError for a model without a pruned channel."""
    small(export_model)


# --- writing and reading -----------------------------------------------------------------------------


def write(export_model: ExportModel, out: Path) -> None:
    """Write the directory."""
    made = replace(export_model, model=small(export_model))
    given = timm_arguments(export_model, made.model)
    if given is not None:
        config = replace(export_model.config, kwargs=given)
        save_model(copy.deepcopy(made.model), config, made.inputs, out, made.class_names)
        make_readable(out / "model.safetensors")
        return
    dense = _dense(export_model)
    what = slim.described(dense, made.model)
    if export_model.card:
        out.mkdir()
        card = {key: value for key, value in export_model.card.items() if key != "slim"}
        write_json(out / "config.json", card | {"slim": what})
        save_tensors(out / "model.safetensors", cpu_state_dict(made.model))
    else:
        kwargs = {**_without_slim(export_model), "slim": what}
        config = replace(export_model.config, kwargs=kwargs)
        save_model(copy.deepcopy(made.model), config, made.inputs, out, made.class_names)
        make_readable(out / "model.safetensors")
    torch_program.write(made, out / PROGRAM)
    if not onnx_file.missing():
        onnx_file.write(made, out / ONNX)
    channels, height, width = export_model.images.shape[1:]
    text = _LOADER.format(channels=channels, height=height, width=width, program=PROGRAM)
    (out / "load.py").write_text(text, "utf-8")


def load(out: Path, export_model: ExportModel) -> Loaded:
    """Read the directory back; raises RunError if its ONNX file gives other logits than its program."""
    if not (out / PROGRAM).is_file():
        found = timm_directory.load(out, export_model)
        return replace(found, note="timm loads it")
    program = torch_program.load(out / PROGRAM, export_model)
    if not (out / ONNX).is_file():
        missing = ", ".join(onnx_file.missing())
        return replace(program, note=f"{PROGRAM} and load.py; no {ONNX} without {missing} (sparsekit-soups[export])")
    run = onnx_file.load(out / ONNX, export_model).predict
    images = export_model.images[:64]
    expected, logits = program.logits(images), run(images)
    difference = float((expected - logits).abs().max())
    if not difference <= _TOLERANCE * max(float(expected.abs().max()), 1.0):
        raise RunError(f"logits of {ONNX} and {PROGRAM} differ by {difference:.3g}")
    return replace(program, note=f"{PROGRAM}, {ONNX} and load.py, as timm has no arguments for these widths")


def reference(export_model: ExportModel) -> Loaded:
    """The masked model's logits, and the tensors of the small one."""
    return replace(Loaded.from_module(export_model.model), tensors=dict(small(export_model).state_dict()))


def _without_slim(export_model: ExportModel) -> dict[str, Any]:
    return {key: value for key, value in export_model.config.kwargs.items() if key != "slim"}


def _dense(export_model: ExportModel) -> nn.Module:
    """The architecture as timm's arguments alone make it."""
    config = replace(export_model.config, kwargs=_without_slim(export_model))
    channels = export_model.images.shape[1]
    return build_model(config, _classes(export_model), channels, 0)


def _classes(export_model: ExportModel) -> int:
    return int(getattr(export_model.model, "num_classes", 0) or export_model.source.num_classes or 1000)


# --- timm's arguments --------------------------------------------------------------------------------


def _of_resnet(model: Any) -> dict[str, Any]:
    last = [getattr(model, f"layer{number}")[-1] for number in (1, 2, 3, 4)]
    return {"channels": [block.conv2.out_channels if not hasattr(block, "conv3") else block.conv1.out_channels
                         for block in last]}  # fmt: skip


def _of_convnext(model: Any) -> dict[str, Any]:
    return {"dims": [stage.blocks[-1].conv_dw.out_channels for stage in model.stages]}


def _of_vit(model: Any) -> dict[str, Any]:
    width = model.patch_embed.proj.out_channels
    return {"embed_dim": width, "mlp_ratio": model.blocks[0].mlp.fc1.out_features / width}


_ARGUMENTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "ResNet": _of_resnet,
    "ConvNeXt": _of_convnext,
    "VisionTransformer": _of_vit,
}
"""Arguments of timm's classes that say how many channels there are, as far as one can say it."""


def timm_arguments(export_model: ExportModel, made: nn.Module) -> dict[str, Any] | None:
    """The arguments with which timm makes a network of the small one's shapes; None if there are none."""
    name, known = export_model.config.name, _ARGUMENTS.get(type(made).__name__)
    if known is None or name is None or is_object(name) or not is_registered(name):
        return None
    try:
        config = replace(export_model.config, kwargs={**_without_slim(export_model), **known(made)})
        other = build_model(config, _classes(export_model), export_model.images.shape[1], 0)
    except (UserError, AttributeError, TypeError, IndexError):  # the guess does not fit this kind
        return None
    expected = {key: tensor.shape for key, tensor in made.state_dict().items()}
    if {key: tensor.shape for key, tensor in other.state_dict().items()} != expected:
        return None
    other.load_state_dict(made.state_dict())
    with torch.no_grad():
        images = export_model.images[:2]
        same = torch.allclose(other.eval()(images), made(images), rtol=_TOLERANCE, atol=_TOLERANCE)
    return config.kwargs if same else None


# --- measuring ---------------------------------------------------------------------------------------


def measure(export_model: ExportModel, out: Path) -> list[tuple[str, str]]:
    """Latency, throughput, peak memory and size of the dense architecture and of the network without channels.

    Times are medians of rounds in which both take turns, on this machine's CPU.
    """
    made = replace(export_model, model=small(export_model))
    dense = replace(export_model, model=speed.filled(_dense(export_model)).eval())
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        pair = [(one, Path(folder) / name) for name, one in (("dense", dense), ("slim", made))]
        for one, path in pair:
            torch_program.write(one, path.with_suffix(".pt2"))
        threads = torch.get_num_threads()
        runtimes: dict[str, Callable[[], list[Loaded]]] = {
            "torch": lambda: [Loaded.from_module(one.model) for one, _ in pair]
        }
        if not onnx_file.missing():
            for one, path in pair:
                onnx_file.write(one, path.with_suffix(".onnx"))
            runtimes["onnxruntime"] = lambda: [onnx_file.load(path.with_suffix(".onnx"), one) for one, path in pair]
        try:
            for count in dict.fromkeys((1, threads)):
                torch.set_num_threads(count)
                for name, models in runtimes.items():
                    label = f"{name}, {count} thread{'s' * (count > 1)}"
                    lines.append((label, _times(models(), export_model.images)))
        finally:
            torch.set_num_threads(threads)
        sizes = [sum(t.numel() * t.element_size() for t in one.model.state_dict().values()) for one, _ in pair]
        programs = [path.with_suffix(".pt2") for _, path in pair]
        lines.append(("peak memory", _memory(programs, export_model.images, sizes)))
    counts = [sum(p.numel() for p in one.model.parameters()) for one, _ in pair]
    lines.append(("tensors", f"{decimal(sizes[0])} → {decimal(sizes[1])}"))
    lines.append(("parameters", f"{counts[0]:,} → {counts[1]:,}"))
    return lines


def _times(models: list[Loaded], images: Tensor) -> str:
    """Latency of one image and throughput of a batch, dense and slim."""
    batch = images[: speed.BATCH // 4]
    one, many = (speed.paired(models[0], models[1], each) for each in (images[:1], batch))
    return (
        f"{1e3 * one.first:.2f} → {1e3 * one.second:.2f} ms an image, {one.ratio}; {len(batch) / many.first:.0f} → "
        f"{len(batch) / many.second:.0f} images/s, {many.ratio}"
    )


def _memory(programs: list[Path], images: Tensor, weights: list[int]) -> str:
    """What weights and a forward pass of a batch take at most, each in a process of its own, dense and slim."""
    batch = images[: speed.BATCH // 4].clone()
    file = programs[0].with_name("images.pt")
    torch.save(batch, file)
    found = []
    for program, size in zip(programs, weights, strict=True):
        command = [sys.executable, "-c", _PEAK, str(program), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return "cannot be measured here: only Linux says what a process took at most"
        found.append(size + int(done.stdout) * 1024)
    return f"{decimal(found[0])} → {decimal(found[1])} for weights and a forward pass of {len(batch)} images"


FORMAT = Format(write, load, reference, tolerance=_TOLERANCE, check=check, measure=measure)
