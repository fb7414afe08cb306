"""Plain convolution with weight standardisation, 2D and 3D, ready for per-unit gradients.

Weight standardisation (Qiao et al. 2019, arXiv 1903.10520) gives every filter mean 0 and a fixed variance before it is
used. Together with group norm it replaces batch norm in the networks of De et al. 2022 (arXiv 2204.13650): it looks at
weights alone, so it neither mixes patients nor costs privacy.

>>> layer = StandardizedConv(2, 1, 8, kernel_size=3, stride=2)
>>> layer(torch.zeros(4, 1, 28, 28)).shape
torch.Size([4, 8, 14, 14])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dpeq.nn.correlate import Geometry, convolve_for_units, filter_gradients
from dpeq.nn.layer import UnitLayer, per_field_sums

__all__ = ["StandardizedConv"]


class StandardizedConv(UnitLayer):
    """Convolution with the filter ``(w - mean) / sqrt((variance + eps) * fan_in)``, standardised per output channel.

    The factor ``1 / sqrt(fan_in)`` is that of Brock et al. 2021 (arXiv 2101.08692): the output then has about the
    variance of the input, whatever the width.

    Args:
        dim: 2 or 3, the number of spatial axes.
        in_channels: channels of the input ``[N, in_channels, *spatial]``.
        out_channels: channels of the output.
        kernel_size: edge of the filter.
        stride: step between outputs, the same along every axis.
        padding: zeros around the input; by default what keeps the size of the map at stride 1 and an odd kernel.
        dilation: step between the taps of the filter.
        bias: one shift per output channel.

    Attributes:
        weight: ``[out_channels, in_channels, *kernel]``, before standardisation.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise ValueError(f"dim is {dim}; images have 2 or 3 spatial axes.")
        if in_channels * kernel_size**dim < 2:
            raise ValueError("a filter of a single tap cannot be standardised; use a larger kernel or more channels.")
        self.geometry = Geometry.of(dim, kernel_size, stride, padding, dilation)
        self.in_channels, self.out_channels, self.eps = in_channels, out_channels, eps
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[kernel_size] * dim))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        return math.prod(self.weight.shape[1:])

    def reset_parameters(self) -> None:
        """Standard deviation ``1 / sqrt(fan_in)``: standardisation makes the filter what it is, so this only sets how
        far a step of the optimiser turns it."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def filter(self) -> Tensor:
        """The standardised filter ``[out_channels, in_channels, *kernel]``."""
        standard, _ = self._standardised()
        return standard.view_as(self.weight) / math.sqrt(self.fan_in)

    def _standardised(self) -> tuple[Tensor, Tensor]:
        """``[out, fan_in]`` of mean 0 and variance 1, and ``[out, 1]``, one over the standard deviation it had."""
        flat = self.weight.flatten(1)
        variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
        inverse_std = (variance + self.eps).rsqrt()
        return (flat - mean) * inverse_std, inverse_std

    def forward(self, x: Tensor) -> Tensor:
        if self.per_unit and self.training:
            return convolve_for_units(x, self.filter(), self.bias, self.geometry, self.weight)
        return self.geometry.convolve(x, self.filter(), self.bias)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :meth:`UnitLayer.per_unit_gradients`.

        A unit's gradient of the filter is a correlation of its inputs with its output gradients, summed over its views
        in one contraction. Standardisation acts on every unit's alike: for ``z = (w - mean) / std``, the gradient of
        ``w`` is ``(g - mean(g) - z * mean(g * z)) / std``.
        """
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight.requires_grad:
            with torch.no_grad():
                standard, inverse_std = self._standardised()
                g = filter_gradients(x, grad_output, self.geometry, views) / math.sqrt(self.fan_in)
                along = (g * standard).mean(dim=2, keepdim=True)
                g = (g - g.mean(dim=2, keepdim=True) - standard * along) * inverse_std
            gradients[self.weight] = g.view(-1, *self.weight.shape)
        if self.bias is not None and self.bias.requires_grad:
            gradients[self.bias] = per_field_sums(grad_output, self.out_channels, views).flatten(1)
        return gradients

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels} -> {self.out_channels}, dim={self.geometry.dim}, {self.geometry.describe()}, "
            f"bias={self.bias is not None}"
        )
