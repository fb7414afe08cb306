"""Equivariant group normalisation for regular and trivial fields, 2D and 3D.

Batch norm mixes patients and has no per-unit gradient; group norm (Wu & He 2018) looks at one image alone. It commutes
with the group when whole fields share their statistics: the group only permutes positions and the channels inside a
field, and a mean over both does not notice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.nn.fields import FieldType

__all__ = ["EquivariantGroupNorm", "group_norm_per_unit_gradients"]


class EquivariantGroupNorm(nn.Module):
    """Normalises ``num_groups`` groups of whole fields of ``[N, channels, *spatial]`` to mean 0 and variance 1.

    Args:
        field_type: what the channels mean; fields are never split between groups.
        num_groups: must divide the number of fields; a wrong one is an error, never adapted.
        affine: learn one scale and one shift per field (per orbit: anything finer would break equivariance).

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
        self.weight = nn.Parameter(torch.ones(field_type.fields)) if affine else None
        self.bias = nn.Parameter(torch.zeros(field_type.fields)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        # Channels are field-major, so torch's contiguous channel groups are groups of whole fields.
        if self.weight is None or self.bias is None:
            return F.group_norm(x, self.num_groups, eps=self.eps)
        size = self.field_type.size
        return F.group_norm(
            x, self.num_groups, self.weight.repeat_interleave(size), self.bias.repeat_interleave(size), self.eps
        )

    def extra_repr(self) -> str:
        t = self.field_type
        affine = self.weight is not None
        return f"{t.group.name}: {t.fields} {t.representation}, num_groups={self.num_groups}, affine={affine}"


def group_norm_per_unit_gradients(
    layer: EquivariantGroupNorm, x: Tensor, grad_output: Tensor, views: int = 1
) -> dict[nn.Parameter, Tensor]:
    """Per-unit gradients ``[units, fields]`` of scale and shift; ``views`` consecutive rows belong to one unit."""
    units, fields = x.shape[0] // views, layer.field_type.fields
    gradients: dict[nn.Parameter, Tensor] = {}
    if layer.weight is not None and layer.weight.requires_grad:
        normalised = F.group_norm(x, layer.num_groups, eps=layer.eps)
        gradients[layer.weight] = (normalised * grad_output).reshape(units, views, fields, -1).sum(dim=(1, 3))
    if layer.bias is not None and layer.bias.requires_grad:
        gradients[layer.bias] = grad_output.reshape(units, views, fields, -1).sum(dim=(1, 3))
    return gradients
