"""Equivariant group normalisation for every kind of field, 2D and 3D.

Batch norm mixes patients and has no per-unit gradient; group norm (Wu & He 2018) looks at one image alone. It commutes
with the group when whole fields share their statistics: a permutation of channels does not change their mean or
variance. Fields that are not permutations are centred on their scalar parts only, and scaled by the mean square of all
their components, which no rotation changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer, per_field_sums, trains

__all__ = ["EquivariantGroupNorm", "divisor_near"]


def divisor_near(fields: int, wish: int) -> int:
    """The largest divisor of ``fields`` that is at most ``wish``: for architectures to choose their norm groups."""
    return max(d for d in range(1, max(1, wish) + 1) if fields % d == 0)


class EquivariantGroupNorm(UnitLayer):
    """Normalises ``num_groups`` groups of whole fields of ``[N, channels, *spatial]`` to mean 0 and mean square 1.

    Args:
        field_type: what the channels mean; fields are never split between groups.
        num_groups: must divide the number of fields; a wrong one is an error, never adapted.
        affine: learn one scale per field, and one shift per field that has a part which the group leaves alone (the
            whole orbit of a regular or quotient field, the scalar part of a Fourier field). Anything finer would break
            equivariance.

    Raises:
        ConfigError: when ``num_groups`` does not divide the number of fields.
    """

    def __init__(self, field_type: FieldType, num_groups: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if num_groups < 1 or field_type.fields % num_groups:
            divisors = [str(d) for d in range(1, field_type.fields + 1) if field_type.fields % d == 0]
            raise ConfigError(
                f"{num_groups} norm groups do not divide {field_type.fields} fields; use one of: {', '.join(divisors)}."
            )
        self.field_type, self.num_groups, self.eps = field_type, num_groups, eps
        rep = field_type.rep
        self.is_permutation = rep.is_permutation
        self.invariant = torch.from_numpy(rep.invariant).to(torch.get_default_dtype())
        self._moments: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        parts = len(self.invariant)
        # Components that a mean may be taken of: all of a permutation's, the scalars of other fields.
        scalars = torch.arange(rep.size) if rep.is_permutation else self.invariant.argmax(dim=1)
        self.scalars = tuple(scalars.tolist())
        self.weight = nn.Parameter(torch.ones(field_type.fields)) if affine else None
        self.bias = nn.Parameter(torch.zeros(field_type.fields, parts)) if affine and parts else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EquivariantGroupNorm:
        super()._apply(fn, recurse)
        self.invariant = fn(self.invariant)
        return self

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._per_channel()
        if self.is_permutation:
            # Channels are field-major, so torch's contiguous channel groups are groups of whole fields.
            if scale is not None and shift is not None and self._leaves_to_hook(x):
                return self._normalise_and_keep(x, scale, shift)
            return F.group_norm(x, self.num_groups, scale, shift, self.eps)
        y = self._normalise(x)
        tail = [1] * (x.dim() - 2)
        y = y if scale is None else y * scale.view(1, -1, *tail)
        return y if shift is None else y + shift.view(1, -1, *tail)

    def _leaves_to_hook(self, x: Tensor) -> bool:
        engaged = self.per_unit and self.training and torch.is_grad_enabled()
        engaged = engaged and (trains(self.weight) or trains(self.bias))  # of a frozen norm, no hook would take them
        return engaged and x.requires_grad and len(x) > 0 and not torch.is_autocast_enabled(x.device.type)

    def _normalise_and_keep(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The forward pass when a hook will take the gradients: keeps mean and deviation for it.

        They are found again by the place of the input in memory, which is theirs alone as long as it is kept beside
        them. A few at most, for layers that are called several times; what is not found is computed again.
        """
        given = (x.shape[0], x.shape[1], math.prod(x.shape[2:]), self.num_groups, self.eps)
        y, mean, rstd = torch.native_group_norm(x.contiguous(), scale.detach(), shift.detach(), *given)
        self._moments[x.data_ptr()] = (x.detach(), mean.detach(), rstd.detach())
        while len(self._moments) > 4:
            self._moments.pop(next(iter(self._moments)))
        return y

    def leave_to_autograd(self) -> None:
        super().leave_to_autograd()
        self._moments.clear()

    def _per_channel(self) -> tuple[Tensor | None, Tensor | None]:
        scale = None if self.weight is None else self.weight.repeat_interleave(self.field_type.size)
        # Not a matrix product, which autocast would turn into another type than the scale's.
        shift = None if self.bias is None else (self.bias.unsqueeze(-1) * self.invariant).sum(dim=1).flatten()
        return scale, shift

    def _normalise(self, x: Tensor) -> Tensor:
        if self.is_permutation:
            return F.group_norm(x, self.num_groups, eps=self.eps)
        t = self.field_type
        # Statistics in half precision are rounded so coarsely that they depend on how many images there are.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide.reshape(x.shape[0], self.num_groups, t.fields // self.num_groups, t.size, math.prod(x.shape[2:]))
        if self.scalars:
            chosen = list(self.scalars)
            mean = y[:, :, :, chosen].mean(dim=(2, 3, 4), keepdim=True)
            mask = y.new_zeros(t.size)
            mask[chosen] = 1.0
            y = y - mean * mask.view(1, 1, 1, -1, 1)
        y = y * torch.rsqrt(y.square().mean(dim=(2, 3, 4), keepdim=True) + self.eps)
        return y.reshape(x.shape).to(x.dtype)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`; scale ``[units, fields]``, shift ``[units, fields, parts]``."""
        t = self.field_type
        scaled, shifted = self._channel_gradients(x, grad_output)  # [rows, channels]
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight is not None and self.weight.requires_grad:
            gradients[self.weight] = per_field_sums(scaled, t.fields, views).sum(dim=2)
        if self.bias is not None and self.bias.requires_grad:
            gradients[self.bias] = per_field_sums(shifted, t.fields, views) @ self.invariant.to(shifted.dtype).T
        return gradients

    def _channel_gradients(self, x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """Of a scale and a shift of every row's and channel's own: ``[rows, channels]`` each."""
        _, *moments = self._moments.pop(x.data_ptr(), (None,))
        x = x.detach().to(grad_output.dtype)
        if not self.is_permutation or len(x) == 0:
            return (self._normalise(x) * grad_output).flatten(2).sum(dim=2), grad_output.flatten(2).sum(dim=2)
        # Rows side by side as channels of one row: torch's backward pass then gives each row's sums apart.
        rows, channels = x.shape[:2]
        if moments:
            mean, rstd = (m.view(1, -1) for m in moments)
            flat, grads = (t.reshape(1, rows * channels, -1) for t in (x, grad_output))
            sizes = (1, rows * channels, flat.shape[2], rows * self.num_groups)
            _, scaled, shifted = torch.ops.aten.native_group_norm_backward(
                grads, flat, mean, rstd, flat.new_ones(rows * channels), *sizes, [False, True, True]
            )
            return scaled.view(rows, channels), shifted.view(rows, channels)
        with torch.enable_grad():
            scale = x.new_ones(rows * channels, requires_grad=True)
            shift = x.new_zeros(rows * channels, requires_grad=True)
            # not F.group_norm, which refuses groups of one number
            y = torch.group_norm(x.reshape(1, rows * channels, -1), rows * self.num_groups, scale, shift, self.eps)
            scaled, shifted = torch.autograd.grad(y, (scale, shift), grad_output.reshape(y.shape))
        return scaled.view(rows, channels), shifted.view(rows, channels)

    def plain(self) -> nn.Module:
        """The same map without dpeq: ``nn.GroupNorm`` for permutation fields."""
        if not self.is_permutation:
            return PlainFieldNorm(self)
        scale, shift = self._per_channel()
        layer = nn.GroupNorm(self.num_groups, self.field_type.channels, self.eps, affine=scale is not None)
        if scale is not None and shift is not None:
            with torch.no_grad():
                layer.weight.copy_(scale)
                layer.bias.copy_(shift)
        return layer.to(self.invariant)

    def extra_repr(self) -> str:
        t = self.field_type
        affine = self.weight is not None
        return f"{t.group.name}: {t.fields} {t.representation}, num_groups={self.num_groups}, affine={affine}"


class PlainFieldNorm(nn.Module):
    """The norm of irrep and Fourier fields as constants and tensor operations, for export."""

    def __init__(self, source: EquivariantGroupNorm) -> None:
        super().__init__()
        t = source.field_type
        self.groups, self.fields, self.size, self.eps = (
            source.num_groups,
            t.fields // source.num_groups,
            t.size,
            source.eps,
        )
        mask = torch.zeros(t.size)
        mask[list(source.scalars)] = 1.0
        self.register_buffer("mask", mask.to(source.invariant).view(1, 1, 1, -1, 1))
        self.share = len(source.scalars) / t.size
        scale, shift = source._per_channel()
        self.register_buffer("scale", torch.ones(t.channels) if scale is None else scale.detach().clone())
        self.register_buffer("shift", torch.zeros(t.channels) if shift is None else shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], self.groups, self.fields, self.size, -1)
        if self.share > 0:
            mean = (y * self.mask).mean(dim=[2, 3, 4], keepdim=True) / self.share
            y = y - mean * self.mask
        y = y * torch.rsqrt(y.square().mean(dim=[2, 3, 4], keepdim=True) + self.eps)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return y.reshape(x.shape) * self.scale.view(shape) + self.shift.view(shape)
