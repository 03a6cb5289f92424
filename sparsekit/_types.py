"""Names for tensors in annotations, without importing torch.

Plugin classes are read by jsonargparse, which runs the `if TYPE_CHECKING:` blocks of the module that
defines the chosen class. Keeping this one block away from `api` and the plugins keeps torch out of
`plan` and `--help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator as Generator
    from torch import Tensor as Tensor
else:
    Generator = Tensor = Any

Tensors = dict[str, Tensor]
"""Tensors by name; for weights and masks the name is the parameter's in the model's state dict."""
