"""The pointwise half of a separable convolution: fields mixed irrep by irrep.

In the basis of irreps an equivariant map between regular fields is block-diagonal (Schur's lemma): one matrix per
irrep, the same for each of its components, so it costs sum_rho d^3 products per pair of fields in place of |G|^2.
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
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer, trains
from dpeq.representations import irreps

__all__ = ["GroupPointwise", "SpectralMix", "check_regular", "group_fourier"]


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


class SpectralMix(UnitLayer):
    """Mixes fields irrep by irrep: spectra ``[N, |G|, in_fields, P] -> [N, |G|, out_fields, P]``.

    Args:
        fourier: the group's Fourier transform, which orders the rows.
        in_fields, out_fields: numbers of regular fields.
        bias: one per output field, the same on the whole orbit: it lands on the scalar row alone.

    Attributes:
        weight: ``[out_fields, in_fields, |G|]``, the blocks of all irreps side by side; an orthonormal parametrisation.
        bias: ``[out_fields]``, or None.
    """

    def __init__(self, fourier: GroupFourier, in_fields: int, out_fields: int, *, bias: bool = True) -> None:
        super().__init__()
        self.parts, self.order = fourier.parts, len(fourier.matrix)
        self.weight = nn.Parameter(torch.empty(out_fields, in_fields, self.order))
        self.bias = nn.Parameter(torch.zeros(out_fields)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation: taps of variance 2 / fan_in, through an orthonormal parametrisation."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.weight.shape[1]))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _matrices(self) -> list[Tensor]:
        """For each shape of irreps its maps ``[count, out_fields * copies, in_fields * copies]``."""
        m, n = self.weight.shape[:2]
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

    def _pieces(self, spectrum: Tensor) -> list[Tensor]:
        """Per shape of irreps ``[N, count, components, copies * fields, P]``: views of the spectrum."""
        rows, _, fields, positions = spectrum.shape
        pieces, start = [], 0
        for d, copies, complex_type, count in self.parts:
            width = count * d * copies
            # a complex irrep has one copy whose two components are the real and the imaginary part
            components = 1 if complex_type else d
            piece = spectrum[:, start : start + width]
            start += width
            pieces.append(piece.reshape(rows, count, components, d * copies // components * fields, positions))
        return pieces

    def forward(self, x: Tensor) -> Tensor:
        maps = self._matrices()
        if self.per_unit and self.training and (x.requires_grad or trains(self.bias)):
            maps = [m.detach() for m in maps]  # see SteerableConv.forward
        rows, _, _, positions = x.shape
        m = self.weight.shape[0]
        mixed = [
            (a.unsqueeze(1) @ piece).view(rows, piece.shape[1] * piece.shape[2] * a.shape[1] // m, m, positions)
            for a, piece in zip(maps, self._pieces(x), strict=True)
        ]
        if self.bias is not None:
            # the same on the whole orbit is sqrt(|G|) on the scalar, which is the first row
            first = mixed[0]
            shift = (self.bias * math.sqrt(self.order)).view(1, 1, m, 1)
            mixed[:1] = [first[:, :1] + shift, first[:, 1:]]
        return torch.cat(mixed, dim=1)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`: correlations of spectra, summed over components and positions."""
        m, n = self.weight.shape[:2]
        units = x.shape[0] // views
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight.requires_grad:
            blocks = []
            for (d, copies, complex_type, count), a, b in zip(
                self.parts, self._pieces(x), self._pieces(grad_output), strict=True
            ):
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
            scalar = grad_output[:, 0].reshape(units, views, m, grad_output.shape[3])
            gradients[self.bias] = scalar.sum(dim=(1, 3)) * math.sqrt(self.order)
        return gradients

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]} fields, bias={self.bias is not None}"


def _correlate(b: Tensor, a: Tensor, views: int) -> Tensor:
    """``sum over views, components and positions of b a^T``: ``[units, count, rows of b, rows of a]``."""
    units = a.shape[0] // views
    count = a.shape[1]

    def lined_up(t: Tensor) -> Tensor:
        # [units * views, count, components, rows, P] -> [units * count, rows, views * components * P]
        split = t.reshape(units, views, *t.shape[1:]).permute(0, 2, 4, 1, 3, 5)
        return split.reshape(units * count, t.shape[3], views * t.shape[2] * t.shape[4])

    return torch.bmm(lined_up(b), lined_up(a).transpose(1, 2)).view(units, count, b.shape[3], a.shape[3])


class GroupPointwise(nn.Module):
    """All equivariant 1x1 maps between regular fields, computed irrep by irrep: ``[N, C_in, *] -> [N, C_out, *]``.

    Args:
        in_type, out_type: regular fields of one finite group (or scalars of the trivial one).
        bias: one per output field, the same on the whole orbit.
    """

    def __init__(self, in_type: FieldType, out_type: FieldType, *, bias: bool = True) -> None:
        super().__init__()
        check_regular(in_type)
        check_regular(out_type)
        if in_type.group != out_type.group:
            raise ValueError(f"a pointwise map keeps to one group, not {in_type.group.name} to {out_type.group.name}.")
        self.in_type, self.out_type = in_type, out_type
        fourier = group_fourier(in_type.group)
        self.fourier = torch.from_numpy(fourier.matrix).to(torch.get_default_dtype())
        # A layer of its own, between the transforms: what its hooks see are spectra, which need no second transform.
        self.mix = SpectralMix(fourier, in_type.fields, out_type.fields, bias=bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupPointwise:
        super()._apply(fn, recurse)
        self.fourier = fn(self.fourier)
        return self

    def forward(self, x: Tensor) -> Tensor:
        rows, order, positions = x.shape[0], len(self.fourier), math.prod(x.shape[2:])
        n, m = self.in_type.fields, self.out_type.fields
        by_element = x.reshape(rows, n, order, positions).transpose(1, 2).reshape(rows, order, n * positions)
        spectrum = (self.fourier @ by_element).view(rows, order, n, positions)
        mixed = self.mix(spectrum).view(rows, order, m * positions)
        back = (self.fourier.T @ mixed).view(rows, order, m, positions)
        return back.transpose(1, 2).reshape(rows, m * order, *x.shape[2:])

    def filter(self) -> Tensor:
        """The same map, but for the bias, as a plain 1x1 filter ``[out_channels, in_channels, 1, ...]``."""
        channels = self.in_type.channels
        eye = torch.eye(channels, dtype=self.fourier.dtype, device=self.fourier.device)
        window = [1] * self.in_type.group.dim
        shift = self(torch.zeros_like(eye[:1]).view(1, channels, *window))
        return (self(eye.view(channels, channels, *window)) - shift).transpose(0, 1)

    def plain(self) -> nn.Module:
        """The same map as a 1x1 ``nn.Conv2d`` or ``nn.Conv3d``."""
        bias = self.mix.bias
        kind = nn.Conv2d if self.in_type.group.dim == 2 else nn.Conv3d
        layer = kind(self.in_type.channels, self.out_type.channels, 1, bias=bias is not None)
        with torch.no_grad():
            layer.weight.copy_(self.filter())
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias.repeat_interleave(self.out_type.size))
        return layer.to(self.fourier)

    def extra_repr(self) -> str:
        i, o = self.in_type, self.out_type
        return f"{i.group.name}: {i.fields} -> {o.fields} {i.representation}"


def check_regular(field_type: FieldType) -> None:
    """Raises ValueError for fields that a separable convolution cannot work on."""
    group = field_type.group
    scalar_of_nothing = field_type.representation == "trivial" and len(group.elements) == 1
    if not (field_type.representation == "regular" or scalar_of_nothing):
        raise ValueError(f"a separable convolution works on regular fields, not {field_type.representation} ones.")
    if not group.on_grid:
        raise ValueError(
            f"a depthwise filter cannot be turned exactly by {group.name}; use a group that keeps the grid."
        )
