"""Upsampling that commutes with rotations and reflections of the grid, for heads that label every pixel."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError

__all__ = ["Upsample"]


class Upsample(nn.Module):
    """Enlarges every spatial axis by a whole number: ``[N, C, *spatial] -> [N, C, *(scale * spatial)]``.

    Pixels are areas, not points (``align_corners=False``), so the new pixels lie symmetrically about the old centre,
    and every channel is treated alike: exact under the symmetries of the grid, for every kind of field.

    Args:
        scale: one number, or one per axis (1 leaves an axis alone, such as an axis of few slices).
        mode: "nearest" repeats pixels; "linear" interpolates between their centres.

    Raises:
        ConfigError: for another mode or a scale below 1.
    """

    def __init__(self, scale: int | tuple[int, ...] = 2, mode: Literal["nearest", "linear"] = "nearest") -> None:
        super().__init__()
        scales = (scale,) if isinstance(scale, int) else tuple(scale)
        if min(scales) < 1:
            raise ConfigError(f"An upsampling by {scale} is none; use whole numbers of at least 1.")
        if mode not in ("nearest", "linear"):
            raise ConfigError(f"There is no upsampling '{mode}'; use nearest or linear.")
        self.scale, self.mode = scale, mode

    def forward(self, x: Tensor) -> Tensor:
        dim = x.dim() - 2
        scales = [self.scale] * dim if isinstance(self.scale, int) else self.scale
        if len(scales) != dim:
            raise ConfigError(f"{len(scales)} scales for {dim} spatial axes; give one number or one per axis.")
        size = [s * n for s, n in zip(scales, x.shape[2:], strict=True)]
        if self.mode == "nearest":
            return F.interpolate(x, size=size, mode="nearest")
        return F.interpolate(x, size=size, mode="bilinear" if dim == 2 else "trilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, mode={self.mode}"
