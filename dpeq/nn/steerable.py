"""Steerable convolution on plain tensors, 2D and 3D, ready for per-unit gradients.

>>> from dpeq.groups import group
>>> from dpeq.nn.fields import FieldType
>>> d4 = group("D4")
>>> layer = SteerableConv(FieldType(d4, "trivial", 1), FieldType(d4, "regular", 3), kernel_size=3)
>>> layer(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 24, 28, 28])
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup
from dpeq.nn.basis import kernel_basis
from dpeq.nn.correlate import Geometry, convolve_for_units
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer, per_field_sums, trains
from dpeq.nn.pullback import fold_filter_gradients, gradients_by_element, pays_by_element

__all__ = ["SteerableConv", "check_symmetric_stride"]


class SteerableConv(UnitLayer):
    """Equivariant convolution: the filter is linear in the coefficients, then ``F.conv2d`` or ``F.conv3d``.

    Args:
        in_type: field type of the input ``[N, in_type.channels, *spatial]``.
        out_type: field type of the output; of the same group.
        kernel_size: edge of the filter; even ones only for groups that keep the grid.
        stride: of the output positions, one number or one per axis. On the axes that the group moves, the windows must
            lie symmetrically on the input, or the layer would not be equivariant: checked at every forward pass.
        padding: zeros on either side; by default ``dilation * (kernel_size - 1) // 2``, which keeps the size at
            stride 1 for odd kernels.
        dilation: distance of the filter's taps.
        bias: one bias per output field on the part that the group leaves alone (the only shift that commutes with it):
            the whole orbit of a regular or quotient field, the scalar part of an irrep or Fourier field, if it has one.

    Attributes:
        weight: coefficients ``[out_fields, blocks, in_fields, rows]``: of a group convolution one block per element,
            otherwise one in all.
        bias: ``[out_fields, invariant parts]``, or None.

    Raises:
        ConfigError: when only the zero kernel is equivariant, or a forward pass meets an asymmetric stride.
    """

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        kernel_size: int = 3,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_type.group != out_type.group:
            raise ValueError(f"a convolution keeps to one group, not {in_type.group.name} to {out_type.group.name}.")
        self.in_type, self.out_type = in_type, out_type
        self.geometry = Geometry.of(in_type.group.dim, kernel_size, stride, padding, dilation)
        basis = kernel_basis(in_type.group, in_type.representation, out_type.representation, kernel_size)
        # Constants of the architecture, not state: no buffers, because Opacus refuses layers that carry buffers.
        dtype = torch.get_default_dtype()
        self.index = basis.index
        self.basis = basis.matrix.to(dtype)
        self.invariant = torch.from_numpy(out_type.rep.invariant).to(dtype)
        self.weight = nn.Parameter(torch.empty(out_type.fields, basis.blocks, in_type.fields, len(basis.matrix)))
        has_bias = bias and len(self.invariant) > 0
        self.bias = nn.Parameter(torch.zeros(out_type.fields, len(self.invariant))) if has_bias else None
        self.reset_parameters()

    @property
    def dim(self) -> int:
        return self.in_type.group.dim

    @property
    def kernel_size(self) -> int:
        return self.geometry.kernel_size

    def reset_parameters(self) -> None:
        """He initialisation: filter taps get variance 2 / fan_in (He et al. 2015), through an orthonormal basis."""
        n_basis = self.weight[0, :, 0].numel()
        nn.init.normal_(self.weight, std=math.sqrt(2 * self.out_type.size / (n_basis * self.in_type.fields)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteerableConv:
        """Lets the constants follow ``.to()``, ``.cuda()`` and ``.double()`` as buffers would."""
        super()._apply(fn, recurse)
        self.basis, self.invariant = fn(self.basis), fn(self.invariant)
        if self.index is not None:
            self.index = fn(self.index)
        return self

    def filter(self) -> Tensor:
        """The plain convolution filter ``[out_channels, in_channels, *kernel]``."""
        out_type, in_type = self.out_type, self.in_type
        free = (self.weight.flatten(0, 2) @ self.basis).view(*self.weight.shape[:3], -1)
        kernels = free.transpose(1, 2).reshape(out_type.fields * in_type.fields, -1)
        if self.index is not None:
            kernels = kernels[:, self.index]
        kernels = kernels.view(out_type.fields, in_type.fields, out_type.size, in_type.size, -1)
        window = [self.kernel_size] * self.dim
        return kernels.transpose(1, 2).reshape(out_type.channels, in_type.channels, *window)

    def channel_bias(self) -> Tensor | None:
        """The bias of every output channel ``[out_channels]``."""
        return None if self.bias is None else (self.bias @ self.invariant).flatten()

    def forward(self, x: Tensor) -> Tensor:
        check_symmetric_stride(self.in_type.group, self.geometry, x)
        kernel, bias = self.filter(), self.channel_bias()
        if self.per_unit and self.training:
            return convolve_for_units(x, kernel, bias, self.geometry, self.weight)
        return self.geometry.convolve(x, kernel, bias)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`: the filter's gradient per unit, then the chain rule through the basis."""
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight.requires_grad:
            x = x.to(grad_output.dtype)  # under autocast the layer computed in the type of its output
            given = (x, grad_output, self.in_type, self.out_type, self.geometry)
            basis = self.basis.to(x.dtype)
            if pays_by_element(*given):
                gradients[self.weight] = gradients_by_element(*given, basis, views)
            else:
                gradients[self.weight] = fold_filter_gradients(*given, basis, views)
        if self.bias is not None and trains(self.bias):
            gradients[self.bias] = per_field_sums(grad_output, self.out_type.fields, views) @ self.invariant.T
        return gradients

    def plain(self) -> nn.Module:
        """The same map as an ``nn.Conv2d`` or ``nn.Conv3d``."""
        g, bias = self.geometry, self.channel_bias()
        kind = nn.Conv2d if self.dim == 2 else nn.Conv3d
        layer = kind(
            self.in_type.channels,
            self.out_type.channels,
            g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            bias=bias is not None,
        )
        with torch.no_grad():
            layer.weight.copy_(self.filter())
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer.to(self.weight)

    def extra_repr(self) -> str:
        i, o, g = self.in_type, self.out_type, self.geometry
        return (
            f"{i.group.name}: {i.fields} {i.representation} -> {o.fields} {o.representation}, {g.describe()}, "
            f"bias={self.bias is not None}"
        )


def check_symmetric_stride(group: SymmetryGroup, geometry: Geometry, x: Tensor) -> None:
    """Windows that lie off centre would break the symmetry, so they are refused.

    Raises:
        ConfigError: names the axis, its size and a size that would do.
    """
    if all(s == 1 for s in geometry.stride) or len(group.elements) == 1:
        return
    moved = (group.matrices != torch.eye(group.dim).numpy()).any(axis=(0, 2))
    on_axis = moved[::-1] if group.dim == 2 else moved  # images are stored [y, x]
    for axis, size in enumerate(x.shape[2:]):
        stride = geometry.stride[axis]
        left_over = (size + 2 * geometry.padding - geometry.reach) % stride
        if on_axis[axis] and left_over:
            raise ConfigError(
                f"A stride of {stride} over {size} pixels (axis {axis}) leaves {left_over} on one side, which breaks "
                f"the symmetry of {group.name}; use {size - left_over} or {size - left_over + stride} pixels, another "
                "kernel size (even for even sizes), or a pooling layer."
            )
