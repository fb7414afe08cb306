"""The Wide-ResNet of Zagoruyko & Komodakis 2016 (arXiv 1605.07146), in 2D and 3D.

As De et al. 2022 (arXiv 2204.13650) train it privately: pre-activation blocks, with group norm in place of batch norm
and weight-standardised convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.nn.norm import divisor_near
from dpeq.nn.standardized import StandardizedConv

__all__ = ["ACTIVATIONS", "WideResNet", "WideResNetSpec", "norm_groups_for"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish}


def norm_groups_for(channels: int, most: int = 16) -> int:
    """The largest divisor of ``channels`` that is at most ``most`` and leaves two channels to a group.

    A group of one channel would be instance norm, which erases how strong a feature is.

    >>> [norm_groups_for(c) for c in (256, 64, 16, 12, 13, 1)]
    [16, 16, 8, 6, 1, 1]
    """
    return divisor_near(channels, min(most, channels // 2))


@dataclass(frozen=True)
class WideResNetSpec:
    """Everything that fixes the network; the defaults are Wide-ResNet-16-4.

    Attributes:
        dim: 2 for images, 3 for volumes.
        depth: convolutions, those of the three shortcuts included: 6n + 4 for n blocks per stage.
        widen: factor of the three stages' widths ``base * (1, 2, 4)``, rounded, at least 2; need not be whole.
        base: channels of the first convolution.
        norm_groups: most groups of a group norm; each norm has :func:`norm_groups_for` its channels.
        activation: "relu" or "mish".

    Raises:
        ConfigError: for a depth that is not 6n + 4, or a value out of range.
    """

    dim: int
    depth: int = 16
    widen: float = 4.0
    base: int = 16
    norm_groups: int = 16
    activation: str = "relu"

    restriction = "none"

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise ConfigError(f"dim is {self.dim}; a Wide-ResNet is for 2D or 3D images.")
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ConfigError(f"depth is {self.depth}; a Wide-ResNet has 6n + 4 layers, such as 10, 16 or 28.")
        if self.widen <= 0 or self.base < 2 or self.norm_groups < 1:
            raise ConfigError(
                f"widen is {self.widen}, base {self.base} and norm_groups {self.norm_groups}; "
                "use a positive factor, at least two channels and at least one group."
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"There is no activation '{self.activation}' here; use one of: {', '.join(ACTIVATIONS)}.")

    @property
    def group(self) -> str:
        return "trivial" if self.dim == 2 else "trivial-3d"

    @property
    def architecture(self) -> str:
        return f"Wide-ResNet-{self.depth}-{self.widen:g}"

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the first convolution and of the three stages, two at least: 1x1 filters are standardised too."""
        first, second, third = (max(2, round(self.base * self.widen * factor)) for factor in (1, 2, 4))
        return self.base, first, second, third

    def build(self, in_channels: int, classes: int) -> nn.Module:
        return WideResNet(self, in_channels, classes)

    def describe(self) -> dict[str, Any]:
        return {
            "depth": self.depth,
            "widen": self.widen,
            "widths": list(self.widths),
            "norm": "group norm, weight standardisation",
            "norm_groups": [norm_groups_for(c, self.norm_groups) for c in self.widths],
            "activation": {"relu": "ReLU", "mish": "Mish"}[self.activation],
        }


class PreActivationBlock(nn.Module):
    """norm, activation, 3x3 convolution, twice, added to the input; where the shape changes, to its 1x1 convolution."""

    def __init__(self, spec: WideResNetSpec, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        dim = spec.dim
        self.norm1 = nn.GroupNorm(norm_groups_for(in_channels, spec.norm_groups), in_channels)
        self.conv1 = StandardizedConv(dim, in_channels, out_channels, stride=stride, bias=False)
        self.norm2 = nn.GroupNorm(norm_groups_for(out_channels, spec.norm_groups), out_channels)
        self.conv2 = StandardizedConv(dim, out_channels, out_channels, bias=False)
        self.activation = ACTIVATIONS[spec.activation]()
        self.shortcut = (
            StandardizedConv(dim, in_channels, out_channels, 1, stride=stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.norm1(x))
        y = self.conv2(self.activation(self.norm2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """``[N, in_channels, *spatial] -> logits [N, classes]``; the second and third stages halve every spatial axis."""

    def __init__(self, spec: WideResNetSpec, in_channels: int, classes: int) -> None:
        super().__init__()
        self.spec = spec
        stem, *stages = spec.widths
        self.stem = StandardizedConv(spec.dim, in_channels, stem, bias=False)
        blocks: list[nn.Module] = []
        previous = stem
        for number, width in enumerate(stages):
            for position in range((spec.depth - 4) // 6):
                stride = 2 if number > 0 and position == 0 else 1
                blocks.append(PreActivationBlock(spec, previous, width, stride))
                previous = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(norm_groups_for(previous, spec.norm_groups), previous)
        self.activation = ACTIVATIONS[spec.activation]()
        self.classifier = nn.Linear(previous, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.blocks(self.stem(x))))
        return self.classifier(x.flatten(2).mean(2))
