"""The unit that networks are built of: convolution, activation, group norm and, if asked, pooling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dpeq.nn.activations import activation_for
from dpeq.nn.fields import FieldType
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import mask_for, pool_for
from dpeq.nn.separable import SeparableConv
from dpeq.nn.steerable import SteerableConv

__all__ = ["BLOCKS", "BlockKind", "ConvBlock"]

BlockKind = Literal["full", "separable"]
BLOCKS: tuple[BlockKind, ...] = ("full", "separable")


class ConvBlock(nn.Module):
    """Convolution, activation, equivariant group norm and, if asked, pooling (the order of Hölzl et al. 2023).

    Args:
        in_type, out_type: field types of input and output ``[N, channels, *spatial]``.
        norm_groups: must divide the output fields.
        pool: halve every axis at the end.
        kind: "full" mixes space and group in one group convolution; "separable" takes them apart where the input has
            fields of the output's kind (a first layer, from scalars, is always full).
        activation: a function of :data:`dpeq.nn.activations.FUNCTIONS`.
    """

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        *,
        norm_groups: int,
        pool: bool = False,
        kind: BlockKind = "full",
        activation: str = "mish",
    ) -> None:
        super().__init__()
        separable = kind == "separable" and in_type.representation == out_type.representation == "regular"
        self.conv: nn.Module = (SeparableConv if separable else SteerableConv)(in_type, out_type)
        self.act = activation_for(out_type, activation)
        self.norm = EquivariantGroupNorm(out_type, norm_groups)
        self.pool = pool_for(out_type.group) if pool else mask_for(out_type.group)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.act(self.conv(x))))
