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
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.nn.basis import steerable_basis
from dpeq.nn.fields import FieldType

__all__ = ["SteerableConv", "steerable_conv_per_unit_gradients"]


class SteerableConv(nn.Module):
    """Equivariant convolution: ``filter = weight @ basis``, then ``F.conv2d`` or ``F.conv3d``.

    Args:
        in_type: field type of the input ``[N, in_type.channels, *spatial]``.
        out_type: field type of the output; of the same group.
        kernel_size: odd edge of the filter; the padding is ``kernel_size // 2``, so the size of the map is kept.
        bias: one bias per output field, the same on the whole orbit (the only shift that commutes with the group).

    Attributes:
        weight: coefficients ``[out_fields, in_fields, n_basis]``.
        per_unit: set while per-unit gradients are taken by hooks. Autograd then skips the batch gradient of the
            filter, which nobody reads; the bias is added outside the convolution because oneDNN computes the
            filter's gradient along with the bias's.
    """

    def __init__(self, in_type: FieldType, out_type: FieldType, kernel_size: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        if in_type.group != out_type.group:
            raise ValueError(f"a convolution keeps to one group, not {in_type.group.name} to {out_type.group.name}.")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; an even kernel has no centre on the grid, use an odd one.")
        self.in_type, self.out_type, self.kernel_size = in_type, out_type, kernel_size
        self.padding = kernel_size // 2
        self.per_unit = False
        basis = steerable_basis(in_type.group, in_type.representation, out_type.representation, kernel_size)
        # A constant of the architecture, not state: no buffer, because Opacus refuses layers that carry buffers.
        self.basis = basis.to(torch.get_default_dtype()).flatten(1)
        self.weight = nn.Parameter(torch.empty(out_type.fields, in_type.fields, len(basis)))
        self.bias = nn.Parameter(torch.zeros(out_type.fields)) if bias else None
        self.reset_parameters()

    @property
    def dim(self) -> int:
        return self.in_type.group.dim

    def reset_parameters(self) -> None:
        """He initialisation: filter taps get variance 2 / fan_in (He et al. 2015), through an orthonormal basis."""
        n_basis = self.weight.shape[-1]
        nn.init.normal_(self.weight, std=math.sqrt(2 * self.out_type.size / (n_basis * self.in_type.fields)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteerableConv:
        """Lets the basis follow ``.to()``, ``.cuda()`` and ``.double()`` as a buffer would."""
        super()._apply(fn, recurse)
        self.basis = fn(self.basis)
        return self

    def filter(self) -> Tensor:
        """The plain convolution filter ``[out_channels, in_channels, *kernel]``."""
        out_type, in_type = self.out_type, self.in_type
        blocks = self.weight.flatten(0, 1) @ self.basis
        blocks = blocks.view(out_type.fields, in_type.fields, out_type.size, in_type.size, -1)
        kernel = [self.kernel_size] * self.dim
        return blocks.transpose(1, 2).reshape(out_type.channels, in_type.channels, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        convolution = F.conv2d if self.dim == 2 else F.conv3d
        kernel = self.filter()
        if self.per_unit and self.training:
            kernel = kernel.detach()
        y = convolution(x, kernel, padding=self.padding)
        if self.bias is None:
            return y
        per_channel = self.bias.repeat_interleave(self.out_type.size)
        return y + per_channel.view(1, -1, *[1] * self.dim)

    def extra_repr(self) -> str:
        i, o = self.in_type, self.out_type
        return (
            f"{i.group.name}: {i.fields} {i.representation} -> {o.fields} {o.representation}, "
            f"kernel_size={self.kernel_size}, bias={self.bias is not None}"
        )


def steerable_conv_per_unit_gradients(
    layer: SteerableConv, x: Tensor, grad_output: Tensor, views: int = 1
) -> dict[nn.Parameter, Tensor]:
    """Gradients per unit in coefficient space; ``views`` consecutive rows of the batch belong to one unit.

    The filter's gradient of a unit is a correlation of its inputs with its output gradients, summed over views inside
    one contraction; the chain rule through ``filter = weight @ basis`` is one product with the transposed basis.

    Args:
        x: layer input ``[units * views, in_channels, *spatial]``.
        grad_output: gradient of the summed loss ``[units * views, out_channels, *spatial]``.

    Returns:
        for each parameter a tensor ``[units, *parameter.shape]``.
    """
    units = x.shape[0] // views
    out_type, in_type = layer.out_type, layer.in_type
    gradients: dict[nn.Parameter, Tensor] = {}
    if layer.weight.requires_grad:
        blocks = _filter_gradients(layer, x, grad_output, units, views)
        blocks = blocks.view(units, out_type.fields, out_type.size, in_type.fields, in_type.size, -1)
        blocks = blocks.transpose(2, 3).reshape(units * out_type.fields * in_type.fields, -1)
        gradients[layer.weight] = (blocks @ layer.basis.T).view(units, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        per_field = grad_output.reshape(units, views, out_type.fields, -1)
        gradients[layer.bias] = per_field.sum(dim=(1, 3))
    return gradients


def _filter_gradients(layer: SteerableConv, x: Tensor, grad_output: Tensor, units: int, views: int) -> Tensor:
    """Per-unit gradients of the filter, ``[units, out_channels, in_channels * taps]``."""
    k, pad, channels = layer.kernel_size, layer.padding, layer.in_type.channels
    rows = _by_unit(grad_output.flatten(2), units, views)
    if layer.dim == 2:
        return torch.bmm(rows, _by_unit(F.unfold(x, k, padding=pad), units, views).transpose(1, 2))
    # In 3D unfolding would hold 27 copies of the input: one shifted copy at a time costs the same arithmetic.
    padded = F.pad(x, [pad] * 6)
    sx, sy, sz = x.shape[2:]
    result = x.new_empty(units, layer.out_type.channels, channels, k**3)
    for tap in range(k**3):
        i, j, m = tap // k**2, tap // k % k, tap % k
        shifted = padded[:, :, i : i + sx, j : j + sy, m : m + sz].reshape(units * views, channels, -1)
        result[..., tap] = torch.bmm(rows, _by_unit(shifted, units, views).transpose(1, 2))
    return result.flatten(2)


def _by_unit(x: Tensor, units: int, views: int) -> Tensor:
    """``[units * views, C, P] -> [units, C, views * P]``: the contraction over positions then covers all views."""
    if views == 1:
        return x
    return x.view(units, views, *x.shape[1:]).transpose(1, 2).reshape(units, x.shape[1], -1)
