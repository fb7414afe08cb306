"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of torch's layers, in 2D and 3D.

It is built so that every parameter has an exact gradient per privacy unit: all of them sit in linear layers, layer
norms and one position embedding. MONAI's and torch's own transformer blocks cannot be taken as they are: MONAI's carry
a layer norm that is never used, and torch's attention keeps its weights as bare parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.nn.position import PositionEmbedding

__all__ = ["ViTSpec", "VisionTransformer"]


@dataclass(frozen=True)
class ViTSpec:
    """Everything that fixes the network.

    Attributes:
        dim: 2 for images, 3 for volumes.
        image_size: edges of the images, one per axis.
        patch: edge of a patch, or one per axis; each divides its edge of the image.
        hidden: width of a token.
        layers: number of transformer blocks.
        heads: attention heads; they divide ``hidden``.
        mlp: width inside the two linear layers of a block.

    Raises:
        ConfigError: when edges, patches or heads do not go together.
    """

    dim: int
    image_size: tuple[int, ...]
    patch: int | tuple[int, ...]
    hidden: int
    layers: int
    heads: int
    mlp: int

    restriction = "none"
    architecture = "vision transformer"

    def __post_init__(self) -> None:
        if self.dim not in (2, 3) or len(self.image_size) != self.dim:
            raise ConfigError(
                f"image_size {list(self.image_size)} does not have one edge for each of {self.dim} axes; "
                "a vision transformer is for 2D or 3D images."
            )
        patch = (self.patch,) * self.dim if isinstance(self.patch, int) else tuple(self.patch)
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "patch", patch)
        if len(patch) != self.dim:
            raise ConfigError(f"patch {list(patch)} does not have one edge for each of {self.dim} axes.")
        if min(self.hidden, self.layers, self.heads, self.mlp, *patch) < 1:
            raise ConfigError("patch, hidden, layers, heads and mlp of a vision transformer are all at least 1.")
        for edge, size in zip(self.image_size, patch, strict=True):
            if edge % size:
                divisors = ", ".join(str(d) for d in range(2, edge + 1) if edge % d == 0)
                raise ConfigError(
                    f"An edge of {edge} is not a whole number of patches of {size}; "
                    f"use a patch of {divisors}, or resize the images."
                )
        if self.hidden % self.heads:
            divisors = ", ".join(str(d) for d in range(1, self.hidden + 1) if self.hidden % d == 0)
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.hidden}; use one of: {divisors}.")

    @property
    def group(self) -> str:
        return "trivial" if self.dim == 2 else "trivial-3d"

    @property
    def tokens(self) -> int:
        return math.prod(e // p for e, p in zip(self.image_size, self.patch, strict=True))  # type: ignore[arg-type]

    def build(self, in_channels: int, classes: int) -> nn.Module:
        return VisionTransformer(self, in_channels, classes)

    def describe(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "patch": list(self.patch),  # type: ignore[arg-type]
            "tokens": self.tokens,
            "hidden": self.hidden,
            "layers": self.layers,
            "heads": self.heads,
            "mlp": self.mlp,
            "norm": "layer norm",
            "activation": "GELU",
            "pooling": "mean over tokens",
        }


class Patches(nn.Module):
    """Cuts images into patches: ``[N, channels, *spatial] -> [N, tokens, channels * voxels of a patch]``."""

    def __init__(self, image_size: tuple[int, ...], patch: tuple[int, ...]) -> None:
        super().__init__()
        self.image_size, self.patch = image_size, patch

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.image_size:
            raise ConfigError(
                f"The vision transformer was built for images of {list(self.image_size)} but got "
                f"{list(x.shape[2:])}; set its image_size to that."
            )
        dim = len(self.patch)
        grid = [e // p for e, p in zip(self.image_size, self.patch, strict=True)]
        split = [n for pair in zip(grid, self.patch, strict=True) for n in pair]
        cut = x.reshape(x.shape[0], x.shape[1], *split)
        # [N, C, g1, p1, g2, p2, ...] -> [N, g1, g2, ..., C, p1, p2, ...]
        order = [0, *range(2, 2 + 2 * dim, 2), 1, *range(3, 3 + 2 * dim, 2)]
        return cut.permute(order).reshape(x.shape[0], math.prod(grid), x.shape[1] * math.prod(self.patch))


class Attention(nn.Module):
    """Multi-head self-attention: ``[N, tokens, hidden] -> [N, tokens, hidden]``."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, hidden = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: the fused kernels differ between devices in their rounding, and tokens are few here.
        weights = (q @ k.transpose(-2, -1) / math.sqrt(hidden // self.heads)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(rows, tokens, hidden))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and added to its input."""

    def __init__(self, hidden: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.wide, self.narrow = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class VisionTransformer(nn.Module):
    """``[N, in_channels, *image_size] -> logits [N, classes]``; mean over tokens, no class token, no dropout."""

    def __init__(self, spec: ViTSpec, in_channels: int, classes: int) -> None:
        super().__init__()
        self.spec = spec
        patch: tuple[int, ...] = spec.patch  # type: ignore[assignment]  # the spec has made it one per axis
        self.patches = Patches(spec.image_size, patch)
        self.embed = nn.Linear(in_channels * math.prod(patch), spec.hidden)
        self.position = PositionEmbedding(spec.tokens, spec.hidden)
        self.blocks = nn.Sequential(*(TransformerBlock(spec.hidden, spec.heads, spec.mlp) for _ in range(spec.layers)))
        self.norm = nn.LayerNorm(spec.hidden)
        self.classifier = nn.Linear(spec.hidden, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(self.embed(self.patches(x)))
        return self.classifier(self.norm(self.blocks(x)).mean(dim=1))


def _initialise(layer: nn.Module) -> None:
    """Xavier weights and zero biases, as the ViT paper's code has it for all but the classifier."""
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
