"""Non-linearities that commute with the group."""

from __future__ import annotations

from torch import nn

from dpeq.nn.fields import FieldType

__all__ = ["activation_for"]


def activation_for(field_type: FieldType) -> nn.Module:
    """Mish on every channel of a permutation field."""
    if field_type.rep.is_permutation:
        return nn.Mish()
    raise NotImplementedError(field_type.representation)
