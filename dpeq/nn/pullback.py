"""Gradients of a steerable filter's coefficients per unit: the plain filter's gradient, pulled back through the basis.

A group convolution's filter repeats each free value once per element, so the plain filter's gradient is |G| times as
large as the coefficients'. On small maps with many channels, writing and folding it costs more than the arithmetic. The
sum over elements can be taken inside the contraction instead: with ``K[h, g](x) = psi(h^-1 g)(g^-1 x)``,

    d psi(g)(t) = sum_h sum_z  (gradient of output h g^-1)(h z) * (input h)(h z + h t),

a correlation whose batch are the elements h: inputs and output gradients as seen from every h. The price is |G| copies
of the output gradients, little on small maps.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from dpeq.groups import SymmetryGroup
from dpeq.nn.basis import kernel_basis
from dpeq.nn.correlate import Geometry, filter_gradients, grouped_filter_gradients
from dpeq.nn.fields import FieldType

__all__ = ["fold_filter_gradients", "gradients_by_element", "pays_by_element"]

_WORKING_SET = 2**21  # numbers held at once: about a processor's cache


def pays_by_element(
    x: Tensor, grad_output: Tensor, in_type: FieldType, out_type: FieldType, geometry: Geometry
) -> bool:
    """Whether :func:`gradients_by_element` applies and is the faster way.

    It applies between regular fields of one group that keeps the grid, where every element maps the map onto itself
    and windows lie one pixel apart. It pays where the copies of the output gradients are small beside the plain
    filter's gradient (measured on a processor; GPUs are slow at grouped convolutions). The choice depends on shapes
    alone, never on timing: a run that is resumed repeats the same arithmetic.
    """
    group = in_type.group
    if x.device.type != "cpu" or not in_type.representation == out_type.representation == "regular":
        return False
    if not group.on_grid or len(group.elements) == 1 or set(geometry.stride) != {1}:
        return False
    taps = geometry.kernel_size**geometry.dim
    if len(group.elements) * math.prod(grad_output.shape[2:]) >= 2 * in_type.channels * taps:
        return False
    return all(_keeps(group, tuple(t.shape[2:])) for t in (x, grad_output))


def gradients_by_element(
    x: Tensor,
    grad_output: Tensor,
    in_type: FieldType,
    out_type: FieldType,
    geometry: Geometry,
    basis: Tensor,
    views: int,
) -> Tensor:
    """Gradients of the coefficients per unit, ``[units, out_fields, |G|, in_fields, rows]``; see above.

    Args:
        x: ``[units * views, in_channels, *spatial]``; :func:`pays_by_element` must hold.
        grad_output: ``[units * views, out_channels, *spatial]``.
        basis: ``[rows, taps]``, of the free function of one element.
    """
    group, inside, outside = in_type.group, tuple(x.shape[2:]), tuple(grad_output.shape[2:])
    order, taps = len(group.elements), geometry.kernel_size**geometry.dim
    units, inputs, outputs = len(x) // views, in_type.fields, out_type.fields
    found = x.new_empty(units, outputs, order, inputs, len(basis))
    own, all_of_them = _own_seen(group, inside), _all_seen(group, outside)
    numbers = order * (inputs * math.prod(inside) + out_type.channels * math.prod(outside))
    chunk = max(1, _WORKING_SET // (views * numbers))
    for start in range(0, units, chunk):
        part, count = slice(start * views, (start + chunk) * views), min(chunk, units - start)
        xs, gs = _by_view(x[part], views, inputs), _by_view(grad_output[part], views, outputs)
        seen_x = x.new_empty(order, len(xs), math.prod(inside))
        seen_g = x.new_empty(order, len(gs), order * math.prod(outside))
        for h in range(order):
            torch.index_select(xs, 1, own[h], out=seen_x[h])
            torch.index_select(gs, 1, all_of_them[h], out=seen_g[h])
        correlated = grouped_filter_gradients(
            seen_x.view(order * views, count * inputs, *inside),
            seen_g.view(order * views, count * out_type.channels, *outside),
            [count * out_type.channels, inputs, *[geometry.kernel_size] * geometry.dim],
            geometry,
            groups=count,
        )
        _through(basis, correlated.view(count, -1, taps), found[start : start + count])
    return found


def fold_filter_gradients(
    x: Tensor,
    grad_output: Tensor,
    in_type: FieldType,
    out_type: FieldType,
    geometry: Geometry,
    basis: Tensor,
    views: int,
) -> Tensor:
    """The same for any fields, by way of the plain filter: ``[units, out_fields, blocks, in_fields, rows]``."""
    units = len(x) // views
    rows, columns = basis.shape
    uses = _uses(in_type, out_type.representation, geometry.kernel_size, x.device)
    repeats, free = uses.shape
    found = x.new_empty(units, out_type.fields, free // (in_type.fields * columns), in_type.fields, rows)
    # A GPU likes all units at once.
    chunk = max(1, _WORKING_SET // (out_type.fields * uses.numel())) if x.device.type == "cpu" else max(1, units)
    for start in range(0, units, chunk):
        part = slice(start * views, (start + chunk) * views)
        whole = filter_gradients(x[part], grad_output[part], geometry, views).reshape(-1, uses.numel())
        folded = whole.index_select(1, uses.flatten()).view(-1, repeats, free)
        by_unit = folded.sum(dim=1).view(len(x[part]) // views, -1, columns)
        _through(basis, by_unit, found[start : start + chunk])
    return found


def _through(basis: Tensor, free: Tensor, out: Tensor) -> None:
    """``free [units, n, columns]`` times the transposed basis, written to ``out`` (``units * n * rows`` numbers).

    A product with few columns is slow; two rows at once, times the basis twice on a diagonal, are twice as fast. The
    two must be of one unit: where one row is not finite, its zeros on the diagonal make the other one NaN.
    """
    twice = free.shape[1] % 2 == 0 and basis.shape[1] < 16
    matrix = (torch.block_diag(basis, basis) if twice else basis).T.contiguous()
    torch.mm(free.view(-1, len(matrix)), matrix, out=out.view(-1, matrix.shape[1]))


@cache
def _uses(in_type: FieldType, out_name: str, kernel_size: int, device: torch.device) -> Tensor:
    """Where in the filters ``[size, in_channels, taps]`` of one output field each free value is used.

    ``[repeats, blocks * in_fields * columns]``.
    """
    group, taps = in_type.group, kernel_size**in_type.group.dim
    basis = kernel_basis(group, in_type.representation, out_name, kernel_size)
    size = FieldType(group, out_name, 1).size
    # a place in the kernel [size, in_size, taps] of one pair of fields, and what lies before the next pair
    inverse = torch.arange(size * in_type.size * taps)[None] if basis.inverse is None else basis.inverse
    row, within = inverse // (in_type.size * taps), inverse % (in_type.size * taps)
    places = row * in_type.channels * taps + within
    fields = torch.arange(in_type.fields).view(1, 1, -1, 1) * in_type.size * taps
    by_block = places.view(len(inverse), basis.blocks, 1, -1) + fields
    return by_block.flatten(1).to(device=device, dtype=torch.int32)


def _by_view(x: Tensor, views: int, fields: int) -> Tensor:
    """``[count * views, fields * size, *spatial] -> [views * count * fields, size * positions]``."""
    by_field = x.reshape(len(x) // views, views, fields, -1)
    return by_field.transpose(0, 1).flatten(0, 2)


@cache
def _keeps(group: SymmetryGroup, space: tuple[int, ...]) -> bool:
    """Whether every element maps planes of that size onto planes of that size."""
    plane = torch.empty(1, 1, *space)
    return all(group.act_on_grid(plane, g).shape == plane.shape for g in group.elements)


def _seen(group: SymmetryGroup, h: int, numbers: Tensor) -> Tensor:
    """The plane ``f(h z)`` for ``f = numbers`` (group elements act as ``(g f)(z) = f(g^-1 z)``)."""
    return group.act_on_grid(numbers, group.inverse(h))


@cache
def _own_seen(group: SymmetryGroup, space: tuple[int, ...]) -> list[Tensor]:
    """For every h, where channel h of a regular field, seen from h, is found in the field ``[|G| * positions]``."""
    numbers = torch.arange(len(group.elements) * math.prod(space)).view(1, -1, *space)
    return [_seen(group, h, numbers[:, h : h + 1]).flatten() for h in group.elements]


@cache
def _all_seen(group: SymmetryGroup, space: tuple[int, ...]) -> list[Tensor]:
    """For every h, where channels ``h g^-1`` (for each g in turn), seen from h, are found in the field."""
    numbers = torch.arange(len(group.elements) * math.prod(space)).view(1, -1, *space)
    return [
        _seen(group, h, numbers[:, [group.product(h, group.inverse(g)) for g in group.elements]]).flatten()
        for h in group.elements
    ]
