"""Pooling that commutes with rotations and reflections of the grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup
from dpeq.nn.fields import FieldType

__all__ = ["AntialiasedPool", "DiscMask", "MaxPool", "SymmetricPool", "mask_for", "pool_for"]


def pool_for(group: SymmetryGroup) -> nn.Module:
    """The pooling that keeps a group's symmetry best: halves every spatial axis of ``[N, C, *spatial]``.

    A plain average for groups that keep the grid, where it is exact. For the others the largest disc, blurred by two
    pixels before every second one is read. In small networks of 3x3 filters an average over two by two pixels changes
    the answer to an image turned by 45 degrees two to three times as much.
    """
    return SymmetricPool() if group.on_grid else nn.Sequential(DiscMask(), AntialiasedPool(2.0))


def mask_for(group: SymmetryGroup) -> nn.Module:
    """What ends a block that does not pool: :class:`DiscMask` for groups off the grid, nothing for the others."""
    return nn.Identity() if group.on_grid else DiscMask()


def _windows(sizes: torch.Size) -> tuple[list[int], list[int], list[int]]:
    """Window, stride and padding per axis, such that the windows lie symmetrically on it.

    Windows of 2 do on an even axis only; on an odd axis windows of 3, centred on every second pixel, do. An axis of
    length 1 is left alone.
    """
    kernel = [1 if s == 1 else 2 if s % 2 == 0 else 3 for s in sizes]
    return kernel, [1 if k == 1 else 2 for k in kernel], [1 if k == 3 else 0 for k in kernel]


class SymmetricPool(nn.Module):
    """Halves every spatial axis by average pooling, in a way that commutes with rotations and reflections.

    Axes of odd length get ``(length + 1) / 2`` windows of 3, others windows of 2; an axis of length 1 is left alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
        kernel, stride, padding = _windows(x.shape[2:])
        return pool(x, kernel, stride, padding, count_include_pad=False)


class MaxPool(nn.Module):
    """Halves every spatial axis by the maximum of each channel, over the windows of :class:`SymmetricPool`.

    Args:
        field_type: of the input; a maximum per channel commutes with permutations of channels only.

    Raises:
        ConfigError: for fields that are not permutations.
    """

    def __init__(self, field_type: FieldType) -> None:
        super().__init__()
        if not field_type.rep.is_permutation:
            raise ConfigError(
                f"The maximum of each channel means nothing for {field_type.representation} fields of "
                f"{field_type.group.name}; use an average or antialiased pool."
            )

    def forward(self, x: Tensor) -> Tensor:
        pool = F.max_pool2d if x.dim() == 4 else F.max_pool3d
        kernel, stride, padding = _windows(x.shape[2:])
        return pool(x, kernel, stride, padding)


class DiscMask(nn.Module):
    """Sets to zero what lies outside the largest disc (in 3D, cylinder about the scan axis) in ``[N, C, *spatial]``.

    A square frame has four corners, which a rotation by 45 degrees does not keep, and the zeros with which convolutions
    pad it trace its outline into the features. The disc's edge is a ramp one pixel wide. Of a plane with unequal edges
    it keeps the middle only, which is all that can be turned within the frame.
    """

    def forward(self, x: Tensor) -> Tensor:
        down, across = (torch.arange(n, dtype=x.dtype, device=x.device) - (n - 1) / 2 for n in x.shape[2:4])
        radius = min(x.shape[2], x.shape[3]) / 2
        inside = (radius - torch.sqrt(down[:, None].square() + across.square())).clamp(0, 1)
        return x * inside.view(*inside.shape, *[1] * (x.dim() - 4))


class AntialiasedPool(nn.Module):
    """Halves every spatial axis by a Gaussian blur that is read at every second pixel (Zhang 2019, ICML).

    Before halving the resolution it removes the detail that the coarser grid would show differently at every angle, and
    it weighs neighbours by their distance alone, which a square window does not. Taps lie symmetrically: at whole
    pixels from the centre on an odd axis, at half pixels on an even one, up to three standard deviations away. An axis
    of length 1 is left alone. Every window's weights sum to 1, at the border too.

    Args:
        sigma: standard deviation of the blur in pixels; 0.66 in the reference's networks for SO(2).
    """

    def __init__(self, sigma: float = 0.66) -> None:
        super().__init__()
        if not sigma > 0:
            raise ConfigError(f"A blur of {sigma} pixels is none; use a positive sigma, such as 0.66.")
        self.sigma = sigma

    def _taps(self, size: int) -> tuple[list[float], int, int]:
        """Weights, stride and padding along an axis of that size."""
        if size == 1:
            return [1.0], 1, 0
        odd = size % 2
        reach = max(1, round(3 * self.sigma))
        places = [i + (0.0 if odd else 0.5) for i in range(-reach, reach + odd)]
        weights = [math.exp(-0.5 * (p / self.sigma) ** 2) for p in places]
        return [w / sum(weights) for w in weights], 2, reach if odd else reach - 1

    def forward(self, x: Tensor) -> Tensor:
        convolve = F.conv2d if x.dim() == 4 else F.conv3d
        # Every channel is an image of its own, and every axis is blurred by itself. Beside it goes an image of ones, on
        # which the blur says what part of a window lies inside.
        y, ones = x.flatten(0, 1).unsqueeze(1), x.new_ones(1, 1, *x.shape[2:])
        for axis, size in enumerate(x.shape[2:]):
            weights, stride, padding = self._taps(size)
            if stride == 1:
                continue
            shape, strides, paddings = [1] * (x.dim() - 2), [1] * (x.dim() - 2), [0] * (x.dim() - 2)
            shape[axis], strides[axis], paddings[axis] = len(weights), stride, padding
            kernel = torch.tensor(weights, dtype=x.dtype, device=x.device).view(1, 1, *shape)
            y = convolve(y, kernel, stride=strides, padding=paddings)
            ones = convolve(ones, kernel, stride=strides, padding=paddings)
        y = y / ones
        return y.view(x.shape[0], x.shape[1], *y.shape[2:])

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"
