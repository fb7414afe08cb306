"""Pooling that commutes with rotations and reflections of the grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SymmetricPool"]


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
