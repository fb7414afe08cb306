"""From fields to numbers that no group element changes, and from a group to a subgroup."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeq.groups import SymmetryGroup
from dpeq.nn.fields import FieldType, restriction_indices

__all__ = ["InvariantPool", "Restrict"]


class Restrict(nn.Module):
    """Reads fields of a group as fields of a subgroup: for regular fields a permutation of channels; no parameters.

    Regular fields become regular fields of the subgroup. Fields that are not permutations stay as they are and become
    ``restricted:`` fields, which the next convolution maps to whatever fields of the subgroup are wanted.

    Attributes:
        out_type: the field type of the output.
    """

    def __init__(self, in_type: FieldType, subgroup: SymmetryGroup) -> None:
        super().__init__()
        self.in_type = in_type
        whole = in_type.group
        channels = torch.arange(in_type.channels)
        if in_type.representation == "trivial" or whole == subgroup:
            self.out_type = FieldType(subgroup, in_type.representation, in_type.fields)
        elif len(subgroup.elements) == 1:
            self.out_type = FieldType(subgroup, "regular", in_type.channels)
        elif in_type.representation == "regular":
            order = torch.tensor(restriction_indices(whole, subgroup))
            copies = len(whole.elements) // len(subgroup.elements)
            self.out_type = FieldType(subgroup, "regular", in_type.fields * copies)
            channels = (torch.arange(in_type.fields).view(-1, 1) * in_type.size + order).flatten()
        else:
            name = f"restricted:{whole.name}:{in_type.representation}"
            self.out_type = FieldType(subgroup, name, in_type.fields)
        self.moves = not torch.equal(channels, torch.arange(in_type.channels))
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.channels) if self.moves else x

    def extra_repr(self) -> str:
        return f"{self.in_type.group.name} -> {self.out_type.group.name}"


class InvariantPool(nn.Module):
    """Invariants of every field, averaged over the whole plane or volume: ``[N, channels, *spatial] -> [N, features]``.

    Regular and quotient fields give their maximum over the group. Other fields give their scalar parts as they are and
    the length of each irreducible part. Averaging over all positions (not a grid of 2 by 2) makes the classifier
    invariant, not only its features.

    Attributes:
        features: number of outputs: one per field, or one per irreducible part of every field.
    """

    def __init__(self, in_type: FieldType) -> None:
        super().__init__()
        self.in_type = in_type
        rep = in_type.rep
        self.parts = tuple(
            (offset, part.dim, part.dim == 1 and bool((part.matrices == 1).all())) for offset, part in rep.blocks
        )
        self.features = in_type.fields * max(1, len(self.parts))

    def forward(self, x: Tensor) -> Tensor:
        by_field = x.flatten(2).unflatten(1, (self.in_type.fields, self.in_type.size))
        if not self.parts:
            return by_field.amax(dim=2).mean(dim=2)
        found = []
        for offset, dim, scalar in self.parts:
            piece = by_field[:, :, offset : offset + dim]
            # the small constant keeps the gradient of a length finite at zero
            found.append(piece[:, :, 0] if scalar else torch.sqrt(piece.square().sum(dim=2) + 1e-6))
        return torch.stack(found, dim=2).mean(dim=3).flatten(1)
