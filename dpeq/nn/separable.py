"""Separable equivariant convolution: symmetry that does not cost |G| times as much.

A full group convolution between regular fields mixes space and group at once and multiplies |G| times more than a
plain convolution of as many parameters. Here the two are taken apart, as EfficientNet's MBConv takes space and channels
apart:

1. :class:`DepthwiseSteerableConv`: every field on its own, one filter per field, turned by each group element: the part
   of the group convolution's kernel that does not mix elements, K[h, g](x) = delta(h, g) psi(h^-1 x).
2. :class:`GroupPointwise`: mixes fields and elements at each pixel. In the basis of irreps it is block-diagonal
   (Schur's lemma): each irrep rho of dimension d carries one matrix over (fields x d copies), shared by its d
   components. It costs sum_rho d^3 products per pair of fields instead of |G|^2 (12 instead of 64 for D4, 64 instead of
   576 for O) with the same |G| = sum_rho d^2 parameters. Back in the regular basis, pointwise activations and group
   norm apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from dpeq.groups import SymmetryGroup
from dpeq.nn.basis import kernel_basis
from dpeq.nn.correlate import Geometry
from dpeq.nn.depthwise import depthwise_convolve, depthwise_filter_gradients
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer, per_field_sums, trains
from dpeq.nn.steerable import check_symmetric_stride
from dpeq.representations import irreps

__all__ = ["DepthwiseSteerableConv", "GroupPointwise", "SeparableConv", "group_fourier"]


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
        _check_regular(field_type)
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


@dataclass(frozen=True, eq=False)
class GroupFourier:
    """The Fourier transform of a finite group, one orthogonal matrix.

    Attributes:
        matrix: float64 ``[|G|, |G|]``; rows are sorted by irrep, then component, then copy.
        parts: for each set of irreps of one shape (dimension d, copies j, complex or not): their number. Rows of the
            matrix follow this order.
    """

    matrix: np.ndarray
    parts: tuple[tuple[int, int, bool, int], ...]

    @property
    def products(self) -> int:
        """Multiplications of a pointwise map per pair of fields and pixel: the sum of d^3 over real irreps."""
        return sum(count * (4 if complex_type else d * copies**2) for d, copies, complex_type, count in self.parts)


@cache
def group_fourier(group: SymmetryGroup) -> GroupFourier:
    """Matrix elements sqrt(d / |G|) rho_ij(g) of the irreps as rows (i: component, j: copy); Serre 1977, 2.4."""
    order = len(group.elements)
    shapes: dict[tuple[int, int, bool], list[np.ndarray]] = {}
    for part in irreps(group):
        rows = part.matrices.transpose(1, 2, 0)[:, : part.multiplicity] * np.sqrt(part.dim / order)
        shapes.setdefault((part.dim, part.multiplicity, part.complex_type), []).append(rows.reshape(-1, order))
    matrix = np.concatenate([rows for group_rows in shapes.values() for rows in group_rows])
    return GroupFourier(matrix, tuple((*shape, len(found)) for shape, found in shapes.items()))


class GroupPointwise(UnitLayer):
    """All equivariant 1x1 maps between regular fields, computed irrep by irrep: ``[N, C_in, *] -> [N, C_out, *]``.

    Args:
        in_type, out_type: regular fields of one finite group (or scalars of the trivial one).
        bias: one per output field, the same on the whole orbit.

    Attributes:
        weight: ``[out_fields, in_fields, |G|]``, the blocks of all irreps side by side; an orthonormal parametrisation.
    """

    def __init__(self, in_type: FieldType, out_type: FieldType, *, bias: bool = True) -> None:
        super().__init__()
        _check_regular(in_type)
        _check_regular(out_type)
        if in_type.group != out_type.group:
            raise ValueError(f"a pointwise map keeps to one group, not {in_type.group.name} to {out_type.group.name}.")
        self.in_type, self.out_type = in_type, out_type
        fourier = group_fourier(in_type.group)
        self.parts = fourier.parts
        self.fourier = torch.from_numpy(fourier.matrix).to(torch.get_default_dtype())
        self.weight = nn.Parameter(torch.empty(out_type.fields, in_type.fields, in_type.size))
        self.bias = nn.Parameter(torch.zeros(out_type.fields)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation: taps of variance 2 / fan_in, through an orthonormal parametrisation."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.in_type.fields))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupPointwise:
        super()._apply(fn, recurse)
        self.fourier = fn(self.fourier)
        return self

    def _matrices(self) -> list[Tensor]:
        """For each shape of irreps its maps ``[count, out_fields * copies, in_fields * copies]``."""
        m, n = self.out_type.fields, self.in_type.fields
        maps, start = [], 0
        for d, copies, complex_type, count in self.parts:
            width = count * (2 if complex_type else copies**2)
            # each coefficient stands in d places of the filter: over sqrt(d) it counts once
            block = self.weight[:, :, start : start + width] / math.sqrt(d)
            start += width
            if complex_type:
                real, imaginary = block.view(m, n, count, 2).permute(3, 2, 0, 1)
                upper = torch.cat([real, -imaginary], dim=2)
                maps.append(torch.cat([upper, torch.cat([imaginary, real], dim=2)], dim=1))
            else:
                shaped = block.view(m, n, count, copies, copies).permute(2, 3, 0, 4, 1)
                maps.append(shaped.reshape(count, copies * m, copies * n))
        return maps

    def _spectrum(self, x: Tensor, fields: int) -> list[Tensor]:
        """Fourier transform of each pixel: per shape of irreps ``[N, count, components, copies * fields, P]``."""
        positions = math.prod(x.shape[2:])
        size = self.in_type.size
        rows = x.reshape(x.shape[0], fields, size, positions).transpose(1, 2)
        rows = rows.reshape(x.shape[0], size, fields * positions)
        transformed = (self.fourier @ rows).view(x.shape[0], size, fields, positions)
        pieces, start = [], 0
        for d, copies, complex_type, count in self.parts:
            width = count * d * copies
            piece = transformed[:, start : start + width]
            start += width
            # a complex irrep has one copy whose two components are the real and the imaginary part
            components = 1 if complex_type else d
            pieces.append(piece.reshape(x.shape[0], count, components, (d * copies // components) * fields, positions))
        return pieces

    def _inverse(self, pieces: list[Tensor], shape: torch.Size) -> Tensor:
        fields, size = self.out_type.fields, self.in_type.size
        positions = math.prod(shape[2:])
        widths = [math.prod(p.shape[1:4]) // fields for p in pieces]
        flat = [p.reshape(shape[0], w, fields * positions) for p, w in zip(pieces, widths, strict=True)]
        spectrum = torch.cat(flat, dim=1)
        rows = (self.fourier.T @ spectrum).view(shape[0], size, fields, positions)
        return rows.transpose(1, 2).reshape(shape[0], fields * size, *shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        maps = self._matrices()
        if self.per_unit and self.training and (x.requires_grad or trains(self.bias)):
            maps = [m.detach() for m in maps]  # see SteerableConv.forward
        mixed = [m.unsqueeze(1) @ piece for m, piece in zip(maps, self._spectrum(x, self.in_type.fields), strict=True)]
        y = self._inverse(mixed, x.shape)
        if self.bias is None:
            return y
        return y + self.bias.repeat_interleave(self.out_type.size).view(1, -1, *[1] * (x.dim() - 2))

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`: correlations of spectra, summed over components and positions."""
        m, n = self.out_type.fields, self.in_type.fields
        units = x.shape[0] // views
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight.requires_grad:
            blocks = []
            inputs, outputs = self._spectrum(x, n), self._spectrum(grad_output, m)
            for (d, copies, complex_type, count), a, b in zip(self.parts, inputs, outputs, strict=True):
                product = _correlate(b, a, views)  # [units, count, copies * m, copies * n]
                if complex_type:
                    p = product.view(units, count, 2, m, 2, n)
                    real = p[:, :, 0, :, 0] + p[:, :, 1, :, 1]
                    imaginary = p[:, :, 1, :, 0] - p[:, :, 0, :, 1]
                    block = torch.stack([real, imaginary], dim=-1).permute(0, 2, 3, 1, 4)
                else:
                    block = product.view(units, count, copies, m, copies, n).permute(0, 3, 5, 1, 2, 4)
                width = count * (2 if complex_type else copies**2)
                blocks.append(block.reshape(units, m, n, width) / math.sqrt(d))
            gradients[self.weight] = torch.cat(blocks, dim=-1)
        if self.bias is not None and self.bias.requires_grad:
            gradients[self.bias] = per_field_sums(grad_output, m, views).sum(dim=2)
        return gradients

    def filter(self) -> Tensor:
        """The same map as a plain 1x1 filter ``[out_channels, in_channels, 1, ...]``."""
        n = self.in_type.channels
        eye = torch.eye(n, dtype=self.weight.dtype, device=self.weight.device).view(n, n, *[1] * self.in_type.group.dim)
        mixed = [
            a.unsqueeze(1) @ p for a, p in zip(self._matrices(), self._spectrum(eye, self.in_type.fields), strict=True)
        ]
        return self._inverse(mixed, eye.shape).transpose(0, 1)

    def plain(self) -> nn.Module:
        """The same map as a 1x1 ``nn.Conv2d`` or ``nn.Conv3d``."""
        kind = nn.Conv2d if self.in_type.group.dim == 2 else nn.Conv3d
        layer = kind(self.in_type.channels, self.out_type.channels, 1, bias=self.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(self.filter())
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias.repeat_interleave(self.out_type.size))
        return layer.to(self.weight)

    def extra_repr(self) -> str:
        i, o = self.in_type, self.out_type
        return f"{i.group.name}: {i.fields} -> {o.fields} {i.representation}, bias={self.bias is not None}"


def _correlate(b: Tensor, a: Tensor, views: int) -> Tensor:
    """``sum over views, components and positions of b a^T``: ``[units, count, rows of b, rows of a]``."""
    units = a.shape[0] // views
    count = a.shape[1]

    def lined_up(t: Tensor) -> Tensor:
        # [units * views, count, components, rows, P] -> [units * count, rows, views * components * P]
        split = t.reshape(units, views, *t.shape[1:]).permute(0, 2, 4, 1, 3, 5)
        return split.reshape(units * count, t.shape[3], views * t.shape[2] * t.shape[4])

    return torch.bmm(lined_up(b), lined_up(a).transpose(1, 2)).view(units, count, b.shape[3], a.shape[3])


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


def _check_regular(field_type: FieldType) -> None:
    group = field_type.group
    scalar_of_nothing = field_type.representation == "trivial" and len(group.elements) == 1
    if not (field_type.representation == "regular" or scalar_of_nothing):
        raise ValueError(f"a separable convolution works on regular fields, not {field_type.representation} ones.")
    if not group.on_grid:
        raise ValueError(
            f"a depthwise filter cannot be turned exactly by {group.name}; use a group that keeps the grid."
        )
