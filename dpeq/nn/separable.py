"""Separable equivariant convolution: symmetry that does not cost |G| times as much.

A full group convolution between regular fields mixes space and group at once and multiplies |G| times more than a
plain convolution of as many parameters. Here the two are taken apart, as EfficientNet's MBConv takes space and channels
apart:

1. :class:`DepthwiseSteerableConv`: every field on its own, one filter per field, turned by each group element: the part
   of the group convolution's kernel that does not mix elements, K[h, g](x) = delta(h, g) psi(h^-1 x).
2. :class:`~dpeq.nn.spectral.GroupPointwise`: mixes fields and elements at each pixel. In the basis of irreps it is
   block-diagonal (Schur's lemma): each irrep rho of dimension d carries one matrix over (fields x d copies), shared by
   its d components. It costs sum_rho d^3 products per pair of fields instead of |G|^2 (12 instead of 64 for D4, 64
   instead of 576 for O) with the same |G| = sum_rho d^2 parameters. Back in the regular basis, pointwise activations
   and group norm apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpeq.nn.basis import kernel_basis
from dpeq.nn.correlate import Geometry
from dpeq.nn.depthwise import depthwise_convolve, depthwise_filter_gradients
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer
from dpeq.nn.spectral import GroupPointwise, check_regular
from dpeq.nn.steerable import check_symmetric_stride

__all__ = ["DepthwiseSteerableConv", "SeparableConv"]


class DepthwiseSteerableConv(UnitLayer):
    """Convolves each regular field with a filter of its own, turned by each element: ``[N, C, *] -> [N, C, *]``.

    Args:
        field_type: regular fields of a group that keeps the grid, or scalars of the trivial group.
        kernel_size, stride, padding, dilation: as in :class:`~dpeq.nn.steerable.SteerableConv`.

    Attributes:
        weight: coefficients ``[fields, n_taps]`` of one band-limited filter per field.
    """

    def __init__(
        self,
        field_type: FieldType,
        kernel_size: int = 3,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        check_regular(field_type)
        self.field_type = field_type
        self.geometry = Geometry.of(field_type.group.dim, kernel_size, stride, padding, dilation)
        # The kernels from a scalar to a regular field are the turned copies of one filter: just what is needed.
        basis = kernel_basis(field_type.group, "trivial", "regular", kernel_size)
        self.basis = basis.dense().to(torch.get_default_dtype())  # [n, size * taps], orthonormal
        self.weight = nn.Parameter(torch.empty(field_type.fields, basis.n))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Taps of variance 1 / fan_in: no activation stands between this layer and the pointwise one."""
        nn.init.normal_(self.weight, std=math.sqrt(self.field_type.size / self.weight.shape[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DepthwiseSteerableConv:
        super()._apply(fn, recurse)
        self.basis = fn(self.basis)
        return self

    def filter(self) -> Tensor:
        """The plain depthwise filter ``[channels, 1, *kernel]``."""
        window = [self.geometry.kernel_size] * self.geometry.dim
        return (self.weight @ self.basis).view(self.field_type.channels, 1, *window)

    def forward(self, x: Tensor) -> Tensor:
        check_symmetric_stride(self.field_type.group, self.geometry, x)
        kernel = self.filter()
        if self.per_unit and self.training and x.requires_grad:
            kernel = kernel.detach()  # see SteerableConv.forward
        return depthwise_convolve(x, kernel, self.geometry)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`: every row's filter gradient, then the chain rule through the basis."""
        if not self.weight.requires_grad:
            return {}
        t, units = self.field_type, x.shape[0] // views
        rows = depthwise_filter_gradients(x, grad_output, self.geometry)
        blocks = rows.view(units, views, t.fields, self.basis.shape[1]).sum(dim=1)
        return {self.weight: blocks @ self.basis.T}

    def plain(self) -> nn.Module:
        """The same map as a depthwise ``nn.Conv2d`` or ``nn.Conv3d``."""
        g, channels = self.geometry, self.field_type.channels
        kind = nn.Conv2d if g.dim == 2 else nn.Conv3d
        layer = kind(
            channels,
            channels,
            g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=channels,
            bias=False,
        )
        with torch.no_grad():
            layer.weight.copy_(self.filter())
        return layer.to(self.weight)

    def extra_repr(self) -> str:
        t = self.field_type
        return f"{t.group.name}: {t.fields} {t.representation}, {self.geometry.describe()}"


class SeparableConv(nn.Module):
    """Depthwise steerable convolution, then the pointwise mix of fields: in place of a full group convolution.

    Args: as :class:`~dpeq.nn.steerable.SteerableConv`, between regular fields.
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
        self.in_type, self.out_type = in_type, out_type
        self.depthwise = DepthwiseSteerableConv(in_type, kernel_size, stride=stride, padding=padding, dilation=dilation)
        self.pointwise = GroupPointwise(in_type, out_type, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
