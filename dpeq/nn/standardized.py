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
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.nn.layer import UnitLayer, by_unit, trains

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
        stride: step between outputs.
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
        self.dim, self.in_channels, self.out_channels = dim, in_channels, out_channels
        self.kernel_size, self.stride, self.dilation, self.eps = kernel_size, stride, dilation, eps
        self.padding = dilation * (kernel_size - 1) // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[kernel_size] * dim))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        return self.in_channels * self.kernel_size**self.dim

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
        convolution = F.conv2d if self.dim == 2 else F.conv3d
        kernel = self.filter()
        if self.per_unit and self.training and (trains(self.bias) or x.requires_grad):
            kernel = kernel.detach()  # the output still requires a gradient, and nobody reads the batch's
        y = convolution(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)
        # Added outside the convolution: oneDNN computes the filter's gradient along with the bias's.
        return y if self.bias is None else y + self.bias.view(1, -1, *[1] * self.dim)

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
                g = self._filter_gradients(x, grad_output, views) / math.sqrt(self.fan_in)
                along = (g * standard).mean(dim=2, keepdim=True)
                g = (g - g.mean(dim=2, keepdim=True) - standard * along) * inverse_std
            gradients[self.weight] = g.view(-1, *self.weight.shape)
        if self.bias is not None and self.bias.requires_grad:
            units = x.shape[0] // views
            gradients[self.bias] = grad_output.flatten(2).sum(2).view(units, views, self.out_channels).sum(1)
        return gradients

    def _filter_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> Tensor:
        """Per-unit gradients of the standardised filter, ``[units, out_channels, fan_in]``."""
        units, k = x.shape[0] // views, self.kernel_size
        rows = by_unit(grad_output.flatten(2), views)
        if self.dim == 2:
            columns = F.unfold(x, k, dilation=self.dilation, padding=self.padding, stride=self.stride)
            return torch.bmm(rows, by_unit(columns, views).transpose(1, 2))
        # In 3D unfolding would hold k^3 copies of the input: one tap at a time costs the same arithmetic.
        padded = F.pad(x, [self.padding] * 6)
        result = x.new_empty(units, self.out_channels, self.in_channels, k**3)
        for number, tap in enumerate(product(range(k), repeat=3)):
            window = [
                slice(t * self.dilation, t * self.dilation + self.stride * (size - 1) + 1, self.stride)
                for t, size in zip(tap, grad_output.shape[2:], strict=True)
            ]
            seen = padded[:, :, window[0], window[1], window[2]].flatten(2)
            result[..., number] = torch.bmm(rows, by_unit(seen, views).transpose(1, 2))
        return result.flatten(2)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels} -> {self.out_channels}, dim={self.dim}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )
