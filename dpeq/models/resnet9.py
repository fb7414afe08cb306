"""The equivariant ResNet-9 of Hölzl, Rueckert & Kaissis (AISec'23, arXiv 2301.13104), in 2D and 3D.

Two things differ from the reference implementation: the head pools over the whole plane, so that the classifier itself
is invariant (the reference flattens a 2 by 2 grid), and the number of norm groups is chosen openly (the reference
adapts it silently when it does not divide the fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dpeq.groups import SymmetryGroup, group
from dpeq.nn.blocks import ConvBlock
from dpeq.nn.fields import FieldType, hidden_representation
from dpeq.nn.invariant import InvariantPool, Restrict
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import pool_for

__all__ = ["EqResNet9", "ResNet9Spec"]


@dataclass(frozen=True)
class ResNet9Spec:
    """Everything that fixes the network.

    Attributes:
        group: name of the symmetry group of the first stages.
        restriction: subgroup kept in the last stage ("none", "halved", "reflection", "invariant").
        fields: regular fields of stage 1 and 2 (of the group) and of the last stage (of the restricted group).
        norm_groups: norm groups of the same three stages; each must divide its fields.
        stem_pool: pool after the first convolution too; about five times less arithmetic on small images.
    """

    group: str
    restriction: str
    fields: tuple[int, int, int]
    norm_groups: tuple[int, int, int]
    stem_pool: bool = False

    @property
    def architecture(self) -> str:
        return "equivariant ResNet-9" if len(group(self.group).elements) > 1 else "residual CNN (ResNet-9)"

    @property
    def dim(self) -> int:
        return group(self.group).dim

    def build(self, in_channels: int, classes: int) -> EqResNet9:
        return EqResNet9(self, in_channels, classes)

    def describe(self) -> dict[str, Any]:
        return {
            "fields": list(self.fields),
            "norm": "equivariant group norm",
            "norm_groups": list(self.norm_groups),
            "activation": "Mish",
            "stem_pool": self.stem_pool,
        }


class EqResNet9(nn.Module):
    """``[N, in_channels, *spatial] -> logits [N, classes]``, invariant under the restricted group.

    Args:
        spec: the architecture.
        in_channels: scalar input channels.
        classes: number of outputs.
    """

    def __init__(self, spec: ResNet9Spec, in_channels: int, classes: int) -> None:
        super().__init__()
        self.spec = spec
        whole = group(spec.group)
        kept = whole.subgroup(spec.restriction)
        (f1, f2, f3), (n1, n2, n3) = spec.fields, spec.norm_groups
        image = FieldType(whole, "trivial", in_channels)
        hidden = hidden_representation(whole)
        first, second, third = (FieldType(whole, hidden, f) for f in (f1, f2, f3))
        last = FieldType(kept, hidden_representation(kept), f3)

        self.conv1 = ConvBlock(image, first, norm_groups=n1, pool=spec.stem_pool)
        self.conv2 = ConvBlock(first, second, norm_groups=n2, pool=True)
        self.res1 = nn.Sequential(*(ConvBlock(second, second, norm_groups=n2) for _ in range(2)))
        self.scale_norm1 = EquivariantGroupNorm(second, n2, affine=False)
        self.conv3 = ConvBlock(second, third, norm_groups=n3, pool=True)
        self.restrict = Restrict(third, kept)
        self.conv4 = ConvBlock(self.restrict.out_type, last, norm_groups=n3)
        self.pool = pool_for(kept)
        self.res2 = nn.Sequential(*(ConvBlock(last, last, norm_groups=n3) for _ in range(2)))
        self.scale_norm2 = EquivariantGroupNorm(last, n3, affine=False)
        self.invariant = InvariantPool(last)
        self.classifier = nn.Linear(self.invariant.features, classes)

    @property
    def symmetry(self) -> SymmetryGroup:
        """The group under which the logits are invariant."""
        return group(self.spec.group).subgroup(self.spec.restriction)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        x = self.scale_norm1(self.res1(x) + x)
        x = self.pool(self.conv4(self.restrict(self.conv3(x))))
        x = self.scale_norm2(self.res2(x) + x)
        return self.classifier(self.invariant(x))
