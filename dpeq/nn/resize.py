"""Bringing images to the resolution that a network was scaled for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Resize"]


class Resize(nn.Module):
    """Scales ``[N, C, *spatial]`` so that the longest edge has ``resolution`` pixels; the other edges follow.

    Symmetric on every axis, so it commutes with the symmetries of the grid: linear interpolation, over all the pixels
    that a coarser one covers when it makes an image smaller (antialiased in 2D, window means in 3D).
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        longest = max(x.shape[2:])
        size = [max(1, round(s * self.resolution / longest)) for s in x.shape[2:]]
        if size == list(x.shape[2:]):
            return x
        if x.dim() == 4:
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        if self.resolution < longest:
            return F.adaptive_avg_pool3d(x, size)
        return F.interpolate(x, size=size, mode="trilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}"
