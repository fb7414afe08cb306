"""The plain arithmetic under every convolution: where its windows lie, and the gradient of its filter per unit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpeq.nn.layer import by_unit

__all__ = ["Geometry", "convolve_for_units", "filter_gradients", "grouped_filter_gradients", "taps_of"]


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

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        convolution = F.conv2d if self.dim == 2 else F.conv3d
        return convolution(x, kernel, bias, self.stride, self.padding, self.dilation, groups)  # type: ignore[arg-type]

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


def convolve_for_units(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, anchor: Tensor) -> Tensor:
    """A convolution whose backward pass stops at the input, for layers whose parameters are left to hooks.

    Autograd would compute the whole batch's gradient of filter and bias, which nobody reads.

    Args:
        anchor: a parameter; the output requires a gradient where it does, also in a first layer, whose input does not.
    """
    if not anchor.requires_grad and not x.requires_grad:
        return geometry.convolve(x, kernel, bias)
    y: Tensor = _ToInput.apply(x, kernel.detach(), None if bias is None else bias.detach(), geometry, anchor)
    return y


class _ToInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.size, ctx.geometry = x.shape, geometry
        return geometry.convolve(x, kernel, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        (kernel,) = ctx.saved_tensors
        g = ctx.geometry
        to_input = torch.nn.grad.conv2d_input if g.dim == 2 else torch.nn.grad.conv3d_input  # type: ignore[attr-defined]
        return to_input(ctx.size, kernel.to(grad.dtype), grad, g.stride, g.padding, g.dilation), None, None, None, None


def filter_gradients(x: Tensor, grad_output: Tensor, geometry: Geometry, views: int) -> Tensor:
    """Per-unit gradients of a plain filter, summed over views: ``[units, out_channels, in_channels * taps]``.

    A unit's gradient is the correlation of its inputs with its output gradients. On a processor that is the weight
    gradient of a convolution with one group per unit, whose batch are the unit's views: oneDNN computes it in about
    the time of the whole batch's gradient. On a GPU, where convolutions with many groups are slow, it is a batched
    matrix product.

    Args:
        x: the input ``[units * views, in_channels, *spatial]``.
        grad_output: gradient at the output ``[units * views, out_channels, *spatial]``.
    """
    units, channels = len(x) // views, (grad_output.shape[1], x.shape[1])
    taps = geometry.kernel_size**geometry.dim
    if units == 0:  # neither way takes an empty batch
        return x.new_zeros(0, channels[0], channels[1] * taps)
    if taps == 1 and geometry.padding == 0 and set(geometry.stride) == {1}:
        return torch.bmm(by_unit(grad_output.flatten(2), views), by_unit(x.flatten(2), views).transpose(1, 2))
    way = _by_grouped_convolution if x.device.type == "cpu" else _by_matrix_products
    return way(x, grad_output, geometry, views)


def _by_grouped_convolution(x: Tensor, grad_output: Tensor, geometry: Geometry, views: int) -> Tensor:
    units, (outputs, inputs) = len(x) // views, (grad_output.shape[1], x.shape[1])
    window = [geometry.kernel_size] * geometry.dim
    x, grad_output = _full_vectors(x), _full_vectors(grad_output)
    found = grouped_filter_gradients(
        _views_as_batch(x, views),
        _views_as_batch(grad_output, views),
        [units * grad_output.shape[1], x.shape[1], *window],
        geometry,
        groups=units,
    )
    whole = found.view(units, grad_output.shape[1], x.shape[1], -1)
    return whole[:, :outputs, :inputs].reshape(units, outputs, -1)


def grouped_filter_gradients(
    x: Tensor, grad_output: Tensor, size: list[int], geometry: Geometry, groups: int
) -> Tensor:
    """Weight gradient, of ``size``, of a grouped convolution of ``x``."""
    given: dict[str, Any] = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
    of_weight = torch.nn.grad.conv2d_weight if geometry.dim == 2 else torch.nn.grad.conv3d_weight  # type: ignore[attr-defined]
    found: Tensor = of_weight(x, size, grad_output, groups=groups, **given)
    return found


def _views_as_batch(x: Tensor, views: int) -> Tensor:
    """``[units * views, C, *spatial] -> [views, units * C, *spatial]``."""
    if views == 1:
        return x.reshape(1, -1, *x.shape[2:])
    by_view = x.view(-1, views, *x.shape[1:]).transpose(0, 1)
    return by_view.reshape(views, -1, *x.shape[2:])


def _full_vectors(x: Tensor) -> Tensor:
    """Channels filled up with zeros to whole vector registers, without which oneDNN takes its slow way."""
    missing = -x.shape[1] % 16
    if x.shape[1] < 16 or missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])


def _by_matrix_products(x: Tensor, grad_output: Tensor, geometry: Geometry, views: int) -> Tensor:
    rows, g = by_unit(grad_output.flatten(2), views), geometry
    if g.dim == 2:
        columns = F.unfold(x, g.kernel_size, padding=g.padding, dilation=g.dilation, stride=g.stride)
        return torch.bmm(rows, by_unit(columns, views).transpose(1, 2))
    # In 3D unfolding would hold 27 copies of the input: one shifted copy at a time costs the same arithmetic.
    result = x.new_empty(len(rows), rows.shape[1], x.shape[1], g.kernel_size**g.dim)
    for tap, shifted in enumerate(taps_of(x, g, grad_output.shape[2:])):
        result[..., tap] = torch.bmm(rows, by_unit(shifted.flatten(2), views).transpose(1, 2))
    return result.flatten(2)
