"""Networks for CIFAR, registered as timm models, as timm has none: 3×3 stems of stride 1 and no max-pooling.

`import sparsekit.models.cifar` registers them; sparsekit imports it wherever it builds a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier  # type: ignore[attr-defined]
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock as Block
from timm.models.resnet import ResNet
from torch import Tensor, nn

__all__ = ["CifarNet"]


def _conv(channels: int, width: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights (option A of arXiv 1512.03385).

    When the resolution halves, the shortcut takes every second pixel and pads with channels of zeros, half of them in
    front.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, width, stride=stride), nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(width, width), nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.stride, self.added = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.added:
            front = self.added // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, front, self.added - front))
        x = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(x + shortcut)  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """Normalisation and ReLU before each of two 3×3 convolutions (arXiv 1605.07146, figure 1b).

    If the shape changes, the shortcut is a 1×1 convolution of the first 3×3 convolution's input.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = _conv(channels, width, stride=stride)
        self.bn2, self.act2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width)
        self.shortcut = _conv(channels, width, 1, stride) if stride > 1 or channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(first)
        second = self.act2(self.bn2(self.conv1(first)))
        return self.conv2(second) + shortcut  # type: ignore[no-any-return]


class CifarNet(nn.Module):
    """A 3×3 stem of 16 channels and three stages of 16, 32 and 64 times `widen` channels, the last two at half size.

    Args:
        depth: Depth as counted by the papers, for n blocks per stage: 6 n + 2, which includes the last layer; with
            `preact` 6 n + 4, which includes the shortcuts' convolutions.
        widen: Factor of the stages' channels.
        preact: Use the pre-activation blocks of wide residual networks instead of the original ones.
        num_classes: Number of classes; 0 returns the pooled features.
        in_chans: Number of image channels.
        global_pool: timm's name of the pooling.
        drop_rate: Dropout before the classifier, 0 to 1; there is none inside blocks.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    global_pool: Any
    fc: nn.Module

    def __init__(
        self,
        depth: int,
        widen: int = 1,
        preact: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - (4 if preact else 2), 6)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth} is not 6 n + {4 if preact else 2} with n of 1 or more")
        block: Callable[[int, int, int], nn.Module] = PreActBlock if preact else BasicBlock
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.grad_checkpointing = False
        self.conv1 = _conv(in_chans, 16)
        self.bn1, self.act1 = self._normalised(0 if preact else 16)
        channels = 16
        self.feature_info: list[dict[str, Any]] = [{"num_chs": 16, "reduction": 1, "module": "act1"}]
        for stage in range(3):
            width, stride = widen * 16 * 2**stage, 1 if stage == 0 else 2
            made = [block(channels, width, stride), *(block(width, width, 1) for _ in range(blocks - 1))]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"})
            channels = width
        self.bn2, self.act2 = self._normalised(channels if preact else 0)
        self.num_features = channels
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _normalised(channels: int) -> tuple[nn.Module, nn.Module]:
        """BatchNorm and ReLU over `channels`; identities if 0."""
        return (nn.BatchNorm2d(channels), nn.ReLU(inplace=True)) if channels else (nn.Identity(), nn.Identity())

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name (timm's interface)."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one for `num_classes`; with 0 the model returns the pooled features."""
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        like = self.conv1.weight
        pool, fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=like.device, dtype=like.dtype
        )
        self.num_classes, self.global_pool, self.fc = num_classes, pool.train(self.training), fc.train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that group parameters into layers, for timm's layer-wise learning-rate decay."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory by recomputing the blocks' activations in the backward pass."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's output [B, C, S / 4, S / 4] for images [B, C, S, S]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and torch.is_grad_enabled() else stage(x)
        return self.act2(self.bn2(x))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits for the last stage's output, or with `pre_logits` the classifier's input."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def resnet18(**kwargs: Any) -> nn.Module:
    """The ResNet-18 of timm with a 3×3 stem of stride 1 and without max-pooling; timm has no argument for that."""
    block: Any = Block  # timm's annotation demands an instance
    model: Any = ResNet(block, (2, 2, 2, 2), **kwargs)
    model.conv1 = _conv(model.in_chans, 64)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for info in model.feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)
    return model  # type: ignore[no-any-return]


def _cfg(pool: int) -> dict[str, Any]:
    """A default configuration for timm, with the mean and standard deviation of CIFAR-10's training images."""
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (pool, pool),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet18": _cfg(4),
        "cifar_resnet20": _cfg(8),
        "cifar_resnet56": _cfg(8),
        "cifar_wrn28_10": _cfg(8),
    }
)


def _create(cls: Callable[..., nn.Module], name: str, pretrained: bool, stages: int, **kwargs: Any) -> nn.Module:
    features = {"out_indices": tuple(range(stages + 1))}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 (arXiv 1512.03385, table 1) for small images: a 3×3 stem, no max-pooling; 11.2 M parameters."""
    return _create(resnet18, "cifar_resnet18", pretrained, 4, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 of arXiv 1512.03385, section 4.2, with shortcuts A: 0.27 M parameters."""
    return _create(CifarNet, "cifar_resnet20", pretrained, 3, **{"depth": 20, **kwargs})


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 of arXiv 1512.03385, section 4.2, with shortcuts A: 0.85 M parameters."""
    return _create(CifarNet, "cifar_resnet56", pretrained, 3, **{"depth": 56, **kwargs})


@register_model
def cifar_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10 of arXiv 1605.07146, without dropout: 36.5 M parameters; `depth` and `widen` make others."""
    return _create(CifarNet, "cifar_wrn28_10", pretrained, 3, **{"depth": 28, "widen": 10, "preact": True, **kwargs})
