"""The plain arithmetic under every convolution: where its windows lie, and the gradient of its filter per unit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from dpeq.nn.layer import by_unit

__all__ = ["Geometry", "filter_gradients", "taps_of"]


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's windows lie, in pixels.

    Attributes:
        dim: 2 or 3.
        kernel_size: taps along every axis.
        stride: distance of neighbouring windows, per axis.
        padding: zeros on either side of every axis.
        dilation: distance of neighbouring taps.
    """

    dim: int
    kernel_size: int
    stride: tuple[int, ...]
    padding: int
    dilation: int

    @classmethod
    def of(
        cls, dim: int, kernel_size: int, stride: int | tuple[int, ...], padding: int | None, dilation: int
    ) -> Geometry:
        strides = (stride,) * dim if isinstance(stride, int) else tuple(stride)
        if len(strides) != dim or min(strides) < 1 or kernel_size < 1 or dilation < 1:
            raise ValueError(f"kernel_size {kernel_size}, stride {stride} and dilation {dilation} must be at least 1.")
        pad = dilation * (kernel_size - 1) // 2 if padding is None else padding
        return cls(dim, kernel_size, strides, pad, dilation)

    @property
    def reach(self) -> int:
        """Pixels that one window spans."""
        return self.dilation * (self.kernel_size - 1) + 1

    def convolve(self, x: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        convolution = F.conv2d if self.dim == 2 else F.conv3d
        return convolution(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=groups)

    def describe(self) -> str:
        stride = self.stride[0] if len(set(self.stride)) == 1 else self.stride
        return f"kernel_size={self.kernel_size}, stride={stride}, padding={self.padding}, dilation={self.dilation}"


def taps_of(x: Tensor, geometry: Geometry, size: torch.Size | tuple[int, ...]) -> list[Tensor]:
    """For every tap of the window, the input pixels it meets: views ``[N, C, *size]`` of the padded input.

    Args:
        size: spatial size of the output.
    """
    g = geometry
    padded = F.pad(x, [g.padding] * (2 * g.dim)) if g.padding else x
    shifted = []
    for offsets in product(range(g.kernel_size), repeat=g.dim):
        window = tuple(
            slice(o * g.dilation, o * g.dilation + (n - 1) * s + 1, s)
            for o, n, s in zip(offsets, size, g.stride, strict=True)
        )
        shifted.append(padded[(slice(None), slice(None), *window)])
    return shifted


def filter_gradients(x: Tensor, grad_output: Tensor, geometry: Geometry, views: int) -> Tensor:
    """Per-unit gradients of a plain filter, summed over views: ``[units, out_channels, in_channels * taps]``.

    A unit's gradient is the correlation of its inputs with its output gradients: one batched matrix product.
    """
    rows = by_unit(grad_output.flatten(2), views)
    units, taps = len(rows), geometry.kernel_size**geometry.dim
    if units == 0:  # F.unfold refuses an empty batch
        return x.new_zeros(0, rows.shape[1], x.shape[1] * taps)
    if taps == 1 and geometry.padding == 0 and set(geometry.stride) == {1}:
        return torch.bmm(rows, by_unit(x.flatten(2), views).transpose(1, 2))
    if geometry.dim == 2:
        g = geometry
        columns = F.unfold(x, g.kernel_size, padding=g.padding, dilation=g.dilation, stride=g.stride)
        return torch.bmm(rows, by_unit(columns, views).transpose(1, 2))
    # In 3D unfolding would hold 27 copies of the input: one shifted copy at a time costs the same arithmetic.
    result = x.new_empty(units, rows.shape[1], x.shape[1], taps)
    for tap, shifted in enumerate(taps_of(x, geometry, grad_output.shape[2:])):
        columns = by_unit(shifted.flatten(2), views)
        result[..., tap] = torch.bmm(rows, columns.transpose(1, 2))
    return result.flatten(2)
