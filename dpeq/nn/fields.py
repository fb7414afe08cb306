"""Field types on plain tensors: what the channels of a feature map mean under a group.

Channels are field-major: a map of ``n`` regular fields of a group of order ``s`` is a tensor ``[N, n * s, *spatial]``
whose channel ``f * s + g`` is field ``f`` at group element ``g``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpeq.groups import Element, SymmetryGroup

__all__ = ["FieldType", "restriction_indices"]


@dataclass(frozen=True)
class FieldType:
    """``fields`` copies of one representation, ``"trivial"`` (scalars) or ``"regular"``, of ``group``."""

    group: SymmetryGroup
    representation: str
    fields: int

    def __post_init__(self) -> None:
        if self.representation not in ("trivial", "regular"):
            raise ValueError(f"representation is {self.representation!r}; use 'trivial' or 'regular'.")
        if self.fields < 1:
            raise ValueError(f"a field type needs at least one field, not {self.fields}.")

    @property
    def size(self) -> int:
        """Channels of one field."""
        return 1 if self.representation == "trivial" else self.group.order

    @property
    def channels(self) -> int:
        return self.fields * self.size

    def transform(self, x: Tensor, element: Element) -> Tensor:
        """The action of ``element`` on a feature map ``[N, channels, *spatial]``: on space and on channels."""
        moved = self.group.act_on_grid(x, element)
        if self.representation == "trivial":
            return moved
        source = torch.as_tensor(self.group.regular_permutation(element), device=x.device)
        stacked = moved.reshape(moved.shape[0], self.fields, self.size, *moved.shape[2:])
        return stacked.index_select(2, source).reshape(moved.shape)


def restriction_indices(group: SymmetryGroup, subgroup: SymmetryGroup) -> tuple[int, ...]:
    """Channel order that reads one regular field of ``group`` as ``|group| / |subgroup|`` of them of ``subgroup``.

    The orbits of left multiplication by H on G are the right cosets H x; on each, ``h -> h x`` carries the regular
    representation of H, so reading channels coset by coset, in H's own order, is the whole change of basis.
    """
    step = group.rotations // subgroup.rotations
    lifted = [(f, r * step) for f, r in subgroup.elements]
    seen: set[Element] = set()
    order: list[int] = []
    for representative in group.elements:
        if representative in seen:
            continue
        coset = [group.product(h, representative) for h in lifted]
        seen.update(coset)
        order.extend(group.index(e) for e in coset)
    return tuple(order)
