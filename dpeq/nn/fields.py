"""Field types on plain tensors: what the channels of a feature map mean under a group.

Channels are field-major: a map of ``n`` fields of size ``s`` is a tensor ``[N, n * s, *spatial]`` whose channel
``f * s + c`` is component ``c`` of field ``f``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpeq.groups import Element, SymmetryGroup
from dpeq.representations import Representation, representation

__all__ = ["FieldType", "hidden_representation", "restriction_indices"]


@dataclass(frozen=True)
class FieldType:
    """``fields`` copies of one representation of ``group``, by its name (see :mod:`dpeq.representations`).

    Raises:
        ConfigError: when the group has no such representation.
    """

    group: SymmetryGroup
    representation: str
    fields: int
    size: int = field(init=False, repr=False, compare=False)  # channels of one field

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", representation(self.group, self.representation).size)
        if self.fields < 1:
            raise ValueError(f"a field type needs at least one field, not {self.fields}.")

    @property
    def rep(self) -> Representation:
        return representation(self.group, self.representation)

    @property
    def channels(self) -> int:
        return self.fields * self.size

    def transform(self, x: Tensor, element: Element, *, mode: str | None = None) -> Tensor:
        """The action of ``element`` on a feature map ``[N, channels, *spatial]``: on space and on channels.

        Args:
            mode: interpolation for elements that do not keep the grid ("bilinear", "bicubic"); None asks for exactness.
        """
        group = self.group
        moved = group.act_on_grid(x, element) if mode is None else group.act_by_interpolation(x, element, mode)
        matrix = torch.as_tensor(self.rep.matrices[element], dtype=x.dtype, device=x.device)
        stacked = moved.reshape(moved.shape[0], self.fields, self.size, -1)
        return (matrix @ stacked).reshape(moved.shape)


def hidden_representation(group: SymmetryGroup) -> str:
    """What inner layers carry: regular fields, or functions on a continuous group up to frequency 2."""
    return "fourier:2" if group.continuous else "regular"


def restriction_indices(group: SymmetryGroup, subgroup: SymmetryGroup) -> tuple[int, ...]:
    """Channel order that reads one regular field of ``group`` as ``|group| / |subgroup|`` of them of ``subgroup``.

    The orbits of left multiplication by H on G are the right cosets H x; on each, ``h -> h x`` carries the regular
    representation of H, so reading channels coset by coset, in H's own order, is the whole change of basis.
    """
    embedded = group.embedding(subgroup)
    if embedded is None:
        raise ValueError(f"{subgroup.name} is no subgroup of {group.name}.")
    order: list[int] = []
    for representative in group.elements:
        if representative not in order:
            order.extend(group.product(h, representative) for h in embedded)
    return tuple(order)
