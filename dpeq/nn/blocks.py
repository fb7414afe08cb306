"""Blocks of equivariant networks: conv -> Mish -> group norm, pooling, restriction and the invariant map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.groups import SymmetryGroup
from dpeq.nn.fields import FieldType, restriction_indices
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.steerable import SteerableConv

__all__ = ["ConvBlock", "InvariantPool", "Restrict", "SymmetricPool"]


class SymmetricPool(nn.Module):
    """Halves every spatial axis by average pooling, in a way that commutes with rotations and reflections.

    A window of 2 is symmetric on an even axis only; on an odd axis a window of 3, centred on every second pixel, is.
    An axis of length 1 is left alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
        sizes = x.shape[2:]
        kernel = [1 if s == 1 else 2 if s % 2 == 0 else 3 for s in sizes]
        padding = [1 if k == 3 else 0 for k in kernel]
        stride = [1 if k == 1 else 2 for k in kernel]
        return pool(x, kernel, stride, padding, count_include_pad=False)


class ConvBlock(nn.Module):
    """Steerable convolution, Mish, equivariant group norm and, if asked, pooling (the order of Hölzl et al. 2023).

    Mish acts on each channel alone, so it commutes with the permutations of a regular field.
    """

    def __init__(self, in_type: FieldType, out_type: FieldType, *, norm_groups: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = SteerableConv(in_type, out_type)
        self.norm = EquivariantGroupNorm(out_type, norm_groups)
        self.pool: nn.Module = SymmetricPool() if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(F.mish(self.conv(x))))


class Restrict(nn.Module):
    """Reads regular fields of a group as regular fields of a subgroup: a permutation of channels, no parameters."""

    def __init__(self, in_type: FieldType, subgroup: SymmetryGroup) -> None:
        super().__init__()
        copies = in_type.group.order // subgroup.order
        self.in_type = in_type
        self.out_type = FieldType(subgroup, "regular", in_type.fields * copies)
        order = torch.tensor(restriction_indices(in_type.group, subgroup))
        fields = torch.arange(in_type.fields).view(-1, 1) * in_type.size
        self.register_buffer("channels", (fields + order).flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.channels)


class InvariantPool(nn.Module):
    """Maximum over the group, mean over the whole plane or volume: ``[N, channels, *spatial] -> [N, fields]``.

    Pooling over all positions (not a grid of 2 by 2) makes the classifier invariant, not only its features.
    """

    def __init__(self, in_type: FieldType) -> None:
        super().__init__()
        self.in_type = in_type

    def forward(self, x: Tensor) -> Tensor:
        by_field = x.view(x.shape[0], self.in_type.fields, self.in_type.size, -1)
        return by_field.amax(dim=2).mean(dim=2)
